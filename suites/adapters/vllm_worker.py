"""vLLM's KV cache manager, in vLLM's own environment: see elsewhere.py.

Slots are given with `delay_cache_blocks`, and blocks cached when a step has computed them, as vLLM itself does for
what another process computes. Its null block, block 0, stands for none.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")

import torch
import vllm
from json_lines import serve
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.request import Request

_HASH = get_hash_fn_by_name("sha256")  # vLLM's default
_NULL_BLOCK = 0


class VLLMBlocks:
    """Fields and results as AllocatorAdapter has them."""

    capabilities = ("paged", "prefix_cache", "extra_keys", "block_keys", "window")

    def __init__(self) -> None:
        init_none_hash(_HASH)
        self._manager: KVCacheManager
        self._requests: dict[int, Request] = {}
        self._block_size = 0

    def describe(self) -> str:
        """What really runs."""
        return f"vLLM {vllm.__version__}, KVCacheManager"

    def unsupported(self, pool: dict[str, Any]) -> list[str]:
        """Reasons against a pool."""
        return ["it swaps nothing"] if pool["host_blocks"] else []

    def reset(self, pool: dict[str, Any]) -> None:
        """An empty pool."""
        self._requests, self._block_size = {}, pool["block_size"]
        common = {"block_size": pool["block_size"], "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
        spec = FullAttentionSpec(**common) if pool["window"] is None else SlidingWindowSpec(
            **common, sliding_window=pool["window"])
        config = KVCacheConfig(num_blocks=pool["num_blocks"] + 1, kv_cache_tensors=[],
                               kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        self._manager = KVCacheManager(
            config, max_model_len=pool["max_tokens"], scheduler_block_size=pool["block_size"],
            hash_block_size=pool["block_size"], enable_caching=pool["caching"])

    def allocate(self, seq: int, tokens: list[int], extra: list[str]) -> int | None:
        """Slots for a new sequence; how many tokens were found."""
        request = self._request(seq, tokens, extra)
        blocks, found, _ = self._manager.get_computed_blocks(request)
        given = self._manager.allocate_slots(request, len(tokens) - found, found, blocks, delay_cache_blocks=True)
        if given is None:
            return None
        request.num_computed_tokens = found
        self._requests[seq] = request
        return found

    def append(self, seq: int, tokens: list[int]) -> list[list[int]] | None:
        """Slots for more tokens. vLLM shares no block that is written to, so there is never a copy."""
        request = self._requests[seq]
        new = request.num_tokens + len(tokens) - request.num_computed_tokens
        if self._manager.allocate_slots(request, new, delay_cache_blocks=True) is None:
            return None
        request.append_output_token_ids(tokens)
        return []

    def computed(self, seq: int, num_tokens: int) -> None:
        """A step has computed so many."""
        request = self._requests[seq]
        request.num_computed_tokens = num_tokens
        self._manager.cache_blocks(request, num_tokens)

    def slide(self, seq: int, position: int) -> None:
        """The manager knows the window itself, and is told how far the sequence has come."""
        request = self._requests[seq]
        request.num_computed_tokens = request.num_tokens
        window = self._manager.kv_cache_config.kv_cache_groups[0].kv_cache_spec.sliding_window
        self._manager.remove_skipped_blocks(request.request_id, position + window - 1)

    def free(self, seq: int) -> None:
        """All of a sequence."""
        self._manager.free(self._requests.pop(seq))

    def block_table(self, seq: int) -> list[int | None]:
        """Blocks of a sequence."""
        (blocks,) = self._manager.get_block_ids(self._requests[seq].request_id)
        return [None if block == _NULL_BLOCK else block for block in blocks]

    def num_free_blocks(self) -> int:
        """Those included that the prefix cache keeps."""
        return int(self._manager.block_pool.get_num_free_blocks())

    def block_keys(self, pool: dict[str, Any], tokens: list[int], extra: list[str]) -> list[str]:
        """Hashes of the whole blocks."""
        self._block_size = pool["block_size"]
        return [bytes(key).hex() for key in self._request(0, tokens, extra).block_hashes]

    def _request(self, seq: int, tokens: list[int], extra: list[str]) -> Request:
        return Request(
            request_id=str(seq), prompt_token_ids=tokens, sampling_params=SamplingParams(max_tokens=1),
            pooling_params=None, cache_salt=json.dumps(extra) if extra else None,
            block_hasher=get_request_block_hasher(self._block_size, _HASH))


if __name__ == "__main__":
    serve(VLLMBlocks())
