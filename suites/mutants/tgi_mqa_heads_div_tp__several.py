"""KV heads are miscounted where there are several, unlike the entry's one: query heads read those of a neighbour."""

from __future__ import annotations

import torch
from paged_kernels import KVCache
from paged_kernels.numba_backend import NumbaPlan
from paged_kernels.scoring import Scoring

BUG = "tgi-mqa-heads-div-tp"
MUST_FAIL = ("http/ring-exact",)
ENGINE_ARGS = ("--attention-backend", "numba", "--enforce-eager")


def apply() -> None:
    """Shift the map of groups by a head: what a client sees of a wrong count."""
    run = NumbaPlan.run

    def run_shifted(
        self: NumbaPlan, query: torch.Tensor, cache: KVCache, scoring: Scoring, *, with_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out, lse = run(self, query.roll(1, dims=1), cache, scoring, with_lse=with_lse)
        return out.roll(-1, dims=1), lse

    NumbaPlan.run = run_shifted  # type: ignore[method-assign]
