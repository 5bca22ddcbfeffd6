"""The number of KV heads is miscounted, so query heads read the KV head of their neighbours."""

from __future__ import annotations

import torch
from paged_kernels import KVCache
from paged_kernels.numba_backend import NumbaPlan
from paged_kernels.scoring import Scoring

BUG = "tgi-mqa-heads-div-tp"
MUST_FAIL = ("http/ring-exact",)
ENGINE_ARGS: tuple[str, ...] = ("--attention-backend", "numba")


def apply() -> None:
    """Shift the map of groups by a head."""
    run = NumbaPlan.run

    def run_shifted(
        self: NumbaPlan, query: torch.Tensor, cache: KVCache, scoring: Scoring, *, with_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if cache.key.shape[2] == 1:
            return run(self, query, cache, scoring, with_lse=with_lse)
        out, lse = run(self, query.roll(1, dims=1), cache, scoring, with_lse=with_lse)
        return out.roll(-1, dims=1), lse

    NumbaPlan.run = run_shifted  # type: ignore[method-assign]
