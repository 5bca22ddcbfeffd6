"""vLLM's KV cache manager and its scheduler, in vLLM's own environment: see elsewhere.py.

Slots are given with `delay_cache_blocks`, and blocks cached when a step has computed them, as vLLM itself does for
what another process computes. Its null block, block 0, stands for none.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")

import torch
import vllm
from json_lines import serve
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

_HASH = get_hash_fn_by_name("sha256")  # vLLM's default
_NULL_BLOCK = 0


class VLLMBlocks:
    """Fields and results as AllocatorAdapter has them."""

    capabilities = ("paged", "prefix_cache", "extra_keys", "cost", "block_keys", "window", "scheduler")

    def __init__(self) -> None:
        init_none_hash(_HASH)
        self._manager: KVCacheManager
        self._requests: dict[int, Request] = {}
        self._block_size = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def describe(self) -> str:
        """What really runs."""
        return f"vLLM {vllm.__version__}, KVCacheManager and Scheduler"

    def unsupported(self, pool: dict[str, Any]) -> list[str]:
        """Reasons against a pool."""
        slots = pool["num_blocks"] * pool["block_size"]
        longer = f"it does not start with sequences longer than its cache of {slots} tokens"
        return (["it swaps nothing"] if pool["host_blocks"] else []) + ([longer] if pool["max_tokens"] > slots else [])

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

    def cost(self, operation: str, seq: int, tokens: list[int], extra: list[str]) -> int | None:
        """As its own check for free blocks counts them, in `allocate_slots`."""
        if operation == "allocate":
            request = self._request(seq, tokens, extra)
            found, computed, _ = self._manager.get_computed_blocks(request)
            blocks, total = found.blocks, len(tokens)
        else:
            request = self._requests[seq]
            blocks, computed = self._manager.empty_kv_cache_blocks.blocks, request.num_computed_tokens
            total = request.num_tokens + len(tokens)
        cost = self._manager.coordinator.get_num_blocks_to_allocate(
            request_id=request.request_id, num_tokens=total, new_computed_blocks=blocks, num_encoder_tokens=0,
            total_computed_tokens=computed, num_local_computed_tokens=computed, num_tokens_main_model=total)
        return cost if cost <= self._manager.block_pool.get_num_free_blocks() else None

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

    def _request(self, seq: int, tokens: list[int], extra: list[str], max_tokens: int = 1) -> Request:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        return Request(
            request_id=str(seq), prompt_token_ids=tokens, sampling_params=params,
            pooling_params=None, cache_salt=json.dumps(extra) if extra else None,
            block_hasher=get_request_block_hasher(self._block_size, _HASH))


    # Its scheduler ------------------------------------------------------------------------------------------------

    def scheduler(self, pool: dict[str, Any], limits: dict[str, int]) -> None:
        """vLLM's own, with an empty pool. It does not overlap steps."""
        self._pool = pool
        spec = FullAttentionSpec(block_size=pool["block_size"], num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache = KVCacheConfig(num_blocks=pool["num_blocks"] + 1, kv_cache_tensors=[],
                              kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        config = self._config(pool, limits)
        config.cache_config.num_gpu_blocks = cache.num_blocks
        self._scheduler = Scheduler(config, cache, StructuredOutputManager(config), pool["block_size"])
        self._block_size = pool["block_size"]

    def _config(self, pool: dict[str, Any], limits: dict[str, int]) -> VllmConfig:
        model = ModelConfig(model=self._model(), skip_tokenizer_init=True, max_model_len=pool["max_tokens"],
                            dtype="float32")
        return VllmConfig(
            model_config=model,
            cache_config=CacheConfig(block_size=pool["block_size"], enable_prefix_caching=pool["caching"]),
            scheduler_config=SchedulerConfig(
                max_model_len=pool["max_tokens"], is_encoder_decoder=False, enable_chunked_prefill=True,
                async_scheduling=False, **limits))

    def _model(self) -> str:
        """A folder with the configuration of a model, which the scheduler's own asks for."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory()
            text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 64,
                    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
                    "max_position_embeddings": 4096}
            (Path(self._folder.name) / "config.json").write_text(json.dumps(text))
        return self._folder.name

    def add(self, request: int, prompt: list[int], output_tokens: int) -> str | None:
        """Refused by length, as vLLM's input processor does before the scheduler sees it."""
        if len(prompt) + output_tokens > self._pool["max_tokens"]:
            return f"longer than max_model_len {self._pool['max_tokens']}"
        self._scheduler.add_request(self._request(request, prompt, [], output_tokens))
        return None

    def abort(self, request: int) -> None:
        """Its client has left."""
        self._scheduler.finish_requests(str(request), RequestStatus.FINISHED_ABORTED)

    def schedule(self) -> dict[str, list[Any]]:
        """The next step."""
        self._step = self._scheduler.schedule()
        told = {new.req_id: new.num_computed_tokens for new in self._step.scheduled_new_reqs}
        cached = self._step.scheduled_cached_reqs
        told |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        tables = self._scheduler.kv_cache_manager
        return {"scheduled": [[int(name), told[name], num_new, list(tables.get_block_ids(name)[0])]
                              for name, num_new in self._step.num_scheduled_tokens.items()],
                "preempted": [int(name) for name in self._step.preempted_req_ids or ()]}

    def complete(self, tokens: list[list[int]]) -> None:
        """The step is computed."""
        sampled = {str(request): token for request, token in tokens}
        names = list(self._step.num_scheduled_tokens)
        self._scheduler.update_from_output(self._step, ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=[[sampled[name]] if name in sampled else [] for name in names]))


if __name__ == "__main__":
    serve(VLLMBlocks(), written_for="vLLM 0.32")
