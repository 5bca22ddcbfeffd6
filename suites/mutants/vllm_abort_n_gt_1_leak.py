"""An abort ends the first sample of a request only: the others run on without a reader."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Request

BUG = "vllm-abort-n-gt-1-leak"
MUST_FAIL = ("http/abort-frees",)
ENGINE_ARGS: tuple[str, ...] = ()


def _abort(self: Scheduler, request: Request) -> None:
    if request.sequences:
        self.finish(request.sequences.pop(0))


def apply() -> None:
    """The id is removed after the first match."""
    Scheduler.abort = _abort  # type: ignore[method-assign]
