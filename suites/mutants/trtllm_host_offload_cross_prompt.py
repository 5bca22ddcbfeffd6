"""Blocks are copied to host memory after their places were given to others: who comes back reads what those wrote."""

from __future__ import annotations

from reference_engine.memory.allocator import BlockCopy
from reference_engine.runner import Runner
from reference_engine.scheduling.step import Step

BUG = "trtllm-host-offload-cross-prompt"
MUST_FAIL = ("http/preemption-exact",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256", "--preemption-mode", "swap",
               "--no-enable-prefix-caching")
DELAY = 4  # steps

_late: list[tuple[int, list[BlockCopy]]] = []  # (steps until it is done, copies)


def apply() -> None:
    """The wait for the copy is missing: it is done some steps later, and nobody waits for it to come back either."""
    move = Runner.move

    def move_late(self: Runner, step: Step) -> None:
        _late.extend((DELAY, copies) for kind, copies in step.moves if kind == "out")
        step.moves = [(kind, copies) for kind, copies in step.moves if kind != "out"]
        for left, copies in _late:
            if left == 0 and self.host_pool is not None:
                self.host_pool.copy_from(self.pool, copies)
        _late[:] = [(left - 1, copies) for left, copies in _late if left > 0]
        move(self, step)

    Runner.move = move_late  # type: ignore[method-assign]
