"""The cache of transformers' continuous batching, in an environment of its own: see elsewhere.py.

What its scheduler does around the cache is done here too: a prompt is looked up, then stored; where there is no room,
all that is kept for reuse is evicted and it is tried again; blocks are marked complete when a step has computed them.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from json_lines import serve
from transformers import ContinuousBatchingConfig, LlamaConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

_LAYER = "full_attention"


class TransformersBlocks:
    """Fields and results as AllocatorAdapter has them."""

    capabilities = ("paged", "prefix_cache", "fork", "sharing")

    def __init__(self) -> None:
        self._cache: PagedAttentionCache
        self._states: dict[int, RequestState] = {}

    def describe(self) -> str:
        """What really runs."""
        return f"transformers {transformers.__version__}, PagedAttentionCache"

    def unsupported(self, pool: dict[str, Any]) -> list[str]:
        """Reasons against a pool."""
        return ["it swaps nothing"] if pool["host_blocks"] else []

    def reset(self, pool: dict[str, Any]) -> None:
        """An empty pool."""
        self._states = {}
        config = LlamaConfig(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, hidden_size=64,
                             head_dim=64, intermediate_size=8, vocab_size=16)
        config._attn_implementation = "sdpa"
        batching = ContinuousBatchingConfig(
            page_size=pool["block_size"], num_blocks=pool["num_blocks"], max_batch_tokens=64,
            max_memory_percent=0.5,
            allow_block_sharing=True)
        self._caching = pool["caching"]
        self._cache = PagedAttentionCache(config, batching, "cpu", DistributedHelper(None, None), torch.float32)

    def allocate(self, seq: int, tokens: list[int], extra: list[str]) -> int | None:
        """Slots for a new sequence; how many tokens were found."""
        state = RequestState(str(seq), list(tokens))
        found = self._cache.search_prefix_match(state.request_id, tokens) if self._caching else 0
        state.position_offset = found
        if not self._store(state, len(tokens) - found):
            self._cache.free_blocks(state.request_id)
            return None
        self._states[seq] = state
        return found

    def append(self, seq: int, tokens: list[int]) -> list[list[int]] | None:
        """Slots for more tokens, all before them being computed."""
        state = self._all_computed(seq)
        if not self._store(state, len(tokens)):
            return None
        state.generated_tokens += tokens
        return []

    def computed(self, seq: int, num_tokens: int) -> None:
        """A step has computed so many."""
        state = self._states[seq]
        complete = self._cache.count_new_complete_blocks(state, num_tokens - state.current_len())
        state.position_offset = num_tokens
        state.status = RequestStatus.DECODING
        self._cache.mark_complete_blocks(state, complete)

    def fork(self, parent: int, child: int) -> list[list[int]] | None:
        """A second sequence with the contents of the first."""
        state, copies = self._all_computed(parent), {name: ([], []) for name in self._cache.cache_allocators}
        if not self._cache.prepare_fork_request(state, [str(child)], copies):
            return None
        twin = RequestState(str(child), list(state.initial_tokens))
        twin.generated_tokens, twin.position_offset = list(state.generated_tokens), state.position_offset
        self._states[child] = twin
        return [list(pair) for source, target in copies.values() for pair in zip(source, target, strict=True)]

    def free(self, seq: int) -> None:
        """All of a sequence."""
        self._cache.free_blocks(self._states.pop(seq).request_id)

    def block_table(self, seq: int) -> list[int]:
        """Blocks of a sequence."""
        return list(self._allocator().block_table[self._states[seq].request_id])

    def num_free_blocks(self) -> int:
        """Those included that are kept for reuse, and those of sectors that are not handed out yet."""
        allocator = self._allocator()
        free = self._cache.pool.count_free_blocks(allocator.index)
        whole = self._cache.pool.num_free_sectors * allocator.blocks_per_sector
        return free + whole + len(allocator.ledger.cached_blocks)

    def _all_computed(self, seq: int) -> RequestState:
        """The state of a sequence, whose tokens have been computed: without caching nobody said so."""
        state = self._states[seq]
        state.position_offset = len(state.initial_tokens) + len(state.generated_tokens)
        return state

    def _allocator(self) -> Any:
        (allocator,) = self._cache.cache_allocators.values()
        return allocator

    def _store(self, state: RequestState, count: int) -> bool:
        if self._cache.can_store_request_tokens(state, count):
            return True
        return self._cache.evict_cached_blocks() and self._cache.can_store_request_tokens(state, count)


if __name__ == "__main__":
    serve(TransformersBlocks(), written_for="transformers 5.23")
