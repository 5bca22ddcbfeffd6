"""A request's lists of token ids as tensors, made once: they may be as long as the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch


class Steering(NamedTuple):
    """What a request asks of every row of its logits. Token ids beyond a row are nothing."""

    allowed: torch.Tensor | None  # [n] int64; None: all
    biased: torch.Tensor          # [m] int64
    biases: torch.Tensor          # [m] float32

    @classmethod
    def of(
        cls, allowed: Iterable[int] | None, logit_bias: tuple[tuple[int, float], ...], device: torch.device
    ) -> Steering:
        """From the fields of SamplingParams."""
        return cls(
            None if allowed is None else torch.tensor(sorted(allowed), dtype=torch.int64, device=device),
            torch.tensor([token for token, _ in logit_bias], dtype=torch.int64, device=device),
            torch.tensor([bias for _, bias in logit_bias], dtype=torch.float32, device=device))

    def apply(self, row: torch.Tensor) -> None:
        """Change `row` [vocab_size] in place."""
        if self.allowed is not None:
            forbidden = torch.ones(len(row), dtype=torch.bool, device=row.device)
            forbidden[self.allowed[self.allowed < len(row)]] = False
            row[forbidden] = -torch.inf
        if len(self.biased):
            within = self.biased < len(row)
            row.index_add_(0, self.biased[within], self.biases[within].to(row.dtype))
