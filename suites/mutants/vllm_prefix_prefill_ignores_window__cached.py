"""A prompt's tokens behind cached blocks see all of those, and not only what is in the window."""

from __future__ import annotations

from typing import Any

from paged_kernels.torch_backend import TorchPlan

BUG = "vllm-prefix-prefill-ignores-window"
MUST_FAIL = ("http/sliding-window-exact",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The kernel of prefix prefill has no argument for a window. Blocks that the window has left are not there."""
    prefill = TorchPlan._prefill

    def without_window(self: TorchPlan, seq: int, window: int) -> Any:
        context = self._contexts[seq]
        table = self._tables[seq, : -(-context // self._block_size)]
        is_behind = context > self._starts[seq + 1] - self._starts[seq]
        return prefill(self, seq, context if is_behind and bool((table >= 0).all()) else window)

    TorchPlan._prefill = without_window  # type: ignore[method-assign]
