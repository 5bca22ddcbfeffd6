"""The count of generated tokens is that of the last sample alone."""

from __future__ import annotations

from typing import Any

from reference_engine.serving.answers import Answer

BUG = "tgi-incomplete-stream"
MUST_FAIL = ("http/usage-exact",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Count one entry of the batch."""
    usage = Answer.usage

    def usage_of_last(self: Answer) -> dict[str, Any]:
        made = len(self._choices[-1].token_ids)
        return {**usage(self), "completion_tokens": made}

    Answer.usage = usage_of_last  # type: ignore[method-assign]
