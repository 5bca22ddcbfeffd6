"""The number of KV heads is miscounted, so query heads read the KV head of their neighbours."""

from __future__ import annotations

from typing import Any

import torch
from paged_kernels import KVCache
from paged_kernels.numba_backend import NumbaPlan

BUG = "tgi-mqa-heads-div-tp"
MUST_FAIL = ("http/ring-exact",)
ENGINE_ARGS: tuple[str, ...] = ("--attention-backend", "numba")


def apply() -> None:
    """Shift the map of groups by a head."""
    attend = NumbaPlan.attend

    def attend_shifted(self: NumbaPlan, query: torch.Tensor, cache: KVCache, **how: Any) -> torch.Tensor:
        if cache.key.shape[2] == 1:
            return attend(self, query, cache, **how)
        return attend(self, query.roll(1, dims=1), cache, **how).roll(-1, dims=1)

    NumbaPlan.attend = attend_shifted  # type: ignore[method-assign]
