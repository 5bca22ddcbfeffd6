"""A request's lists of token ids as tensors, made once: they may be as long as the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch


class Steering(NamedTuple):
    """What a request asks of every row of its logits, and of those before min_tokens."""

    forbidden: torch.Tensor | None  # [vocab_size] bool; None: nothing is
    biased: torch.Tensor            # [n] int64
    biases: torch.Tensor            # [n] float32
    ends: torch.Tensor              # [m] int64, which may not come before min_tokens

    @classmethod
    def of(
        cls, allowed: Iterable[int] | None, logit_bias: Sequence[tuple[int, float]], ends: Iterable[int],
        row: torch.Tensor,
    ) -> Steering:
        """For rows like `row` [vocab_size]. Token ids beyond it are nothing."""
        size, device = len(row), row.device

        def ids(token_ids: Iterable[int]) -> torch.Tensor:
            return torch.tensor([token for token in token_ids if token < size], dtype=torch.int64, device=device)

        forbidden = None
        if allowed is not None:
            forbidden = torch.ones(size, dtype=torch.bool, device=device)
            forbidden[ids(allowed)] = False
        biases = [bias for token, bias in logit_bias if token < size]
        return cls(forbidden, ids(token for token, _ in logit_bias),
                   torch.tensor(biases, dtype=torch.float32, device=device), ids(ends))

    def apply(self, row: torch.Tensor, *, may_end: bool) -> None:
        """Change `row` in place."""
        if self.forbidden is not None:
            row[self.forbidden] = -torch.inf
        if not may_end:
            row[self.ends] = -torch.inf
        row.index_add_(0, self.biased, self.biases)
