"""The queue is sorted the wrong way round: whoever came last is served first."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence, Status

BUG = "mistralrs-starvation"
MUST_FAIL = ("alloc/first-come-first-served", "http/no-starvation")
ENGINE_ARGS = ("--max-num-seqs", "4")


def _enqueue(self: Scheduler, seq: Sequence) -> None:
    seq.status = Status.WAITING
    self.waiting.insert(0, seq)


def apply() -> None:
    """Last come, first served."""
    Scheduler._enqueue = _enqueue  # type: ignore[method-assign]
