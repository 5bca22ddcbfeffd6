"""The path of chats does not hand on the cache salt: there all tenants share one cache."""

from __future__ import annotations

from dataclasses import replace

from reference_engine.serving.protocol import Job, Parser

BUG = "vllm-cache-salt-dropped-for-one-path"
MUST_FAIL = ("http/salt-isolates",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """One of two places that build a request forgets a field."""
    chat = Parser.chat
    Parser.chat = lambda self, raw: _without_salt(chat(self, raw))  # type: ignore[method-assign]


def _without_salt(job: Job) -> Job:
    return replace(job, cache_salt=None)
