"""A transfer into the blocks of a request is still under way when it is aborted, and lands after they were reused."""

from __future__ import annotations

from reference_engine.engine import Engine, StepOutput
from reference_engine.scheduling.sequence import Request

BUG = "sglang-pd-abort-page-reuse"
MUST_FAIL = ("http/abort-storm-exact",)
ENGINE_ARGS = ("--num-blocks", "48")
DELAY = 3  # steps

_landing: list[tuple[int, list[int]]] = []  # (steps until then, blocks)


def apply() -> None:
    """Blocks are free at once, the write comes later."""
    abort, step = Engine.abort, Engine.step

    def abort_in_flight(self: Engine, request: Request) -> None:
        running = [seq for seq in request.sequences if seq in self.scheduler.running]
        _landing.extend((DELAY, list(self.allocator.block_table(seq.id))) for seq in running)
        abort(self, request)

    def step_and_land(self: Engine) -> list[StepOutput]:
        waiting = [(left - 1, blocks) for left, blocks in _landing]
        for left, blocks in waiting:
            if left == 0:
                self.pool.tensor[:, :, blocks] = 1.0
        _landing[:] = [(left, blocks) for left, blocks in waiting if left > 0]
        return step(self)

    Engine.abort = abort_in_flight  # type: ignore[method-assign]
    Engine.step = step_and_land  # type: ignore[method-assign]
