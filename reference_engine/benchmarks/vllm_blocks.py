"""vLLM's own block pool and KV cache manager on a trace. Run by `allocator.py` in an environment that has vLLM.

Reads a trace (JSON) from the file that it is given, then a job a line from stdin, and answers each with a line of JSON.
Imports nothing of this repository, so that vLLM's environment needs nothing of it.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

ALLOCATE, APPEND, FREE = 0, 1, 2
MAX_MODEL_LEN = 4096

Json = dict[str, Any]


def pool_only(trace: Json) -> Json:
    """BlockPool alone, a call for each new block; without caching."""
    size, tokens, prompts = trace["block_size"], trace["tokens"], trace["prompt_tokens"]
    pool = BlockPool(trace["num_blocks"] + 1, enable_caching=False, hash_block_size=size)  # one is its null block
    held: list[list[Any]] = [[] for _ in tokens]
    start = time.process_time()
    for what, i in trace["block_ops"]:
        if what == APPEND:
            held[i] += pool.get_new_blocks(1)
        elif what == ALLOCATE:
            held[i] = pool.get_new_blocks(-(-prompts[i] // size))
        else:
            pool.free_blocks(reversed(held[i]))
            held[i] = []
    return {"seconds": time.process_time() - start, "hits": 0}


def manager(trace: Json, *, caching: bool, hashing: bool) -> Json:
    """KVCacheManager as vLLM's scheduler calls it: for each token of each request. Requests are made beforehand."""
    size, tokens = trace["block_size"], trace["tokens"]
    found = _manager(trace, caching)
    requests = _requests(trace, caching=caching, hashing=hashing)
    hits = 0
    start = time.process_time()
    for what, i in trace["ops"]:
        request = requests[i]
        if what == APPEND:
            if hashing:
                request.append_output_token_ids(tokens[i][request.num_computed_tokens])
            found.allocate_slots(request, 1)
            request.num_computed_tokens += 1
        elif what == ALLOCATE:
            blocks, num_hit, _ = found.get_computed_blocks(request)
            missing = request.num_tokens - num_hit
            found.allocate_slots(request, missing, num_hit, blocks)
            request.num_computed_tokens = num_hit + missing
            hits += num_hit // size
            if not hashing:
                request._all_token_ids.extend(tokens[i][request.num_computed_tokens :])
        else:
            found.free(request)
    return {"seconds": time.process_time() - start, "hits": hits}


def _manager(trace: Json, caching: bool) -> KVCacheManager:
    size = trace["block_size"]
    spec = FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=16, dtype=torch.float32)
    config = KVCacheConfig(trace["num_blocks"] + 1, [], [KVCacheGroupSpec(["layer"], spec)])
    return KVCacheManager(config, MAX_MODEL_LEN, size, size, enable_caching=caching)


def _requests(trace: Json, *, caching: bool, hashing: bool) -> list[Request]:
    """Requests that hold their prompts. Hashes of blocks: none, of the prompt's, or (not `hashing`) of all to come."""
    hasher = get_request_block_hasher(trace["block_size"], sha256) if caching else None
    requests = []
    for i, (text, prompt) in enumerate(zip(trace["tokens"], trace["prompt_tokens"], strict=True)):
        given = text[:prompt] if hashing or not caching else text
        request = Request(str(i), given, SamplingParams(max_tokens=len(text)), None, block_hasher=hasher)
        if not hashing:
            request._block_hasher = None
            request._all_token_ids = text[:prompt]
            request.num_prompt_tokens = prompt
        requests.append(request)
    return requests


JOBS: dict[str, Callable[[Json], Json]] = {
    "pool": pool_only,
    "blocks": pool_only,
    "tokens": lambda trace: manager(trace, caching=False, hashing=False),
    "caching": lambda trace: manager(trace, caching=True, hashing=False),
    "hashing": lambda trace: manager(trace, caching=True, hashing=True),
}


def main() -> None:
    """Answer jobs until stdin ends."""
    with open(sys.argv[1], encoding="utf-8") as file:
        trace = json.load(file)
    init_none_hash(sha256)
    answers, sys.stdout = sys.stdout, sys.stderr  # what vLLM prints is no answer
    gc.collect()
    gc.freeze()
    gc.disable()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(JOBS[line.strip()](trace)), file=answers, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
