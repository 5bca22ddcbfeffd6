"""A field of a client reaches the engine unchecked and ends it (the entry's CVE-2026-105756, with a token id here)."""

from __future__ import annotations

from reference_engine.engine import Engine

BUG = "vllm-ttft-prefix-oracle"
MUST_FAIL = ("http/bad-input-then-healthy",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Believe that every id is in the vocabulary."""
    init = Engine.__init__

    def trusting(self: Engine, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)  # type: ignore[arg-type]
        self.vocab_size = 2**63

    Engine.__init__ = trusting  # type: ignore[method-assign]
