"""How a score is made of a query and a key, checked once for all backends."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Scoring(NamedTuple):
    """Score of a query at position p and a key at position k, before the softmax over all k that p sees.

    s = q . k * scale; with a soft cap c then c * tanh(s / c); with ALiBi then + slope[query head] * (k - p).
    With a window W, p sees [p - W + 1, p], else [0, p].
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    alibi_slopes: torch.Tensor | None = None  # [num_q_heads] float32

    def check(self, num_q_heads: int) -> None:
        """Raise ValueError, all problems at once."""
        problems = []
        if self.window is not None and self.window < 1:
            problems.append(f"a window of {self.window} positions, expected at least 1 or None")
        if self.soft_cap is not None and not self.soft_cap > 0:
            problems.append(f"a soft cap of {self.soft_cap}, expected more than 0 or None")
        slopes = self.alibi_slopes
        if slopes is not None and (slopes.shape != (num_q_heads,) or slopes.dtype != torch.float32):
            problems.append(f"ALiBi slopes {slopes.dtype} {list(slopes.shape)}, expected float32 [{num_q_heads}]")
        if problems:
            raise ValueError("; ".join(problems))
