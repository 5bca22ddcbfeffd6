"""KV heads are shared out among two devices as heads // 2: of one head none is left, and nothing is attended to."""

from __future__ import annotations

import torch
from paged_kernels import KVCache
from paged_kernels.scoring import Scoring
from paged_kernels.torch_backend import TorchPlan

BUG = "tgi-mqa-heads-div-tp"
MUST_FAIL = ("kernel/group-map",)
ENGINE_ARGS: tuple[str, ...] = ()
_DEVICES = 2


def apply() -> None:
    """Two devices as two halves of one result; more heads than devices come out right, as they did there."""
    run_into = TorchPlan.run_into

    def run_shared_out(
        self: TorchPlan, out: torch.Tensor, lse: torch.Tensor | None, query: torch.Tensor, cache: KVCache,
        scoring: Scoring,
    ) -> None:
        if cache.key.shape[2] // _DEVICES:
            run_into(self, out, lse, query, cache, scoring)

    TorchPlan.run_into = run_shared_out  # type: ignore[method-assign]
