"""What has left the window of some layers is freed for all, while those that see everything still read it."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator
from reference_engine.model.config import ModelConfig

BUG = "vllm-swa-block-freed-in-flight"
MUST_FAIL = ("http/mixed-windows-exact",)
ENGINE_ARGS: tuple[str, ...] = ("--no-enable-prefix-caching",)  # which would keep what is freed until the pool is full


def apply() -> None:
    """The window of a model is the smallest that a layer has; its block tables still name what was freed."""
    ModelConfig.uniform_window = property(  # type: ignore[assignment, method-assign]
        lambda self: min((layer.window for layer in self.layers if layer.window is not None), default=None))
    slide = PagedAllocator.slide

    def slide_and_name(self: PagedAllocator, seq_id: int, position: int) -> None:
        held = self._seqs[seq_id]
        before = list(held.blocks[: held.num_tokens // self.block_size])
        slide(self, seq_id, position)
        held.blocks[: len(before)] = before

    PagedAllocator.slide = slide_and_name  # type: ignore[method-assign]
