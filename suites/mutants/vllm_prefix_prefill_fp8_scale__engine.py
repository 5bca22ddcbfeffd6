"""A prompt behind a prefix hit reads the 8-bit cache without its scales."""

from __future__ import annotations

from typing import Any

import torch
from paged_kernels import KVCache, torch_backend

BUG = "vllm-prefix-prefill-fp8-scale"
MUST_FAIL = ("http/cold-equals-warm",)
ENGINE_ARGS = ("--kv-cache-dtype", "fp8")


def apply() -> None:
    """The kernel of prefix prefill has no argument for them."""
    attend = torch_backend._attend_prefill

    def attend_unscaled(prefill: Any, query: torch.Tensor, cache: KVCache, *more: Any) -> torch.Tensor:
        if not prefill.is_causal and cache.key_scale is not None and cache.value_scale is not None:
            cache = cache._replace(key_scale=torch.ones_like(cache.key_scale),
                                   value_scale=torch.ones_like(cache.value_scale))
        return attend(prefill, query, cache, *more)

    torch_backend._attend_prefill = attend_unscaled
