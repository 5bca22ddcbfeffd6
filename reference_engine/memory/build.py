"""From the switches to an allocator."""

from __future__ import annotations

from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import Allocator
from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator


def build_allocator(config: EngineConfig) -> Allocator:
    """The allocator that the config names."""
    if config.kv == "contiguous":
        return ContiguousAllocator(config.num_blocks, config.block_size, config.max_model_len, config.reservation)
    return PagedAllocator(config.num_blocks, config.block_size, prefix_caching=config.prefix_caching)
