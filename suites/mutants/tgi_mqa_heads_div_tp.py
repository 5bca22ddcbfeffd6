"""The number of KV heads is miscounted, so query heads read the KV head of their neighbours."""

from __future__ import annotations

import torch
from paged_kernels.torch_backend import TorchPlan

BUG = "tgi-mqa-heads-div-tp"
MUST_FAIL = ("http/ring-exact",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Shift the map of groups by a head."""
    attend = TorchPlan.attend

    def attend_shifted(
        self: TorchPlan, query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, scale: float
    ) -> torch.Tensor:
        if key_cache.shape[2] == 1:
            return attend(self, query, key_cache, value_cache, scale)
        return attend(self, query.roll(1, dims=1), key_cache, value_cache, scale).roll(-1, dims=1)

    TorchPlan.attend = attend_shifted  # type: ignore[method-assign]
