"""The first in the queue gives way, which this very step has scheduled already, and it stays in the batch."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler

BUG = "vllm-preempt-already-scheduled"
MUST_FAIL = ("alloc/schedule-sanity",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Choose a victim without a look at the step."""
    Scheduler._victim = lambda self: self.running[0]  # type: ignore[method-assign]
