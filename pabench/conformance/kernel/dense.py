"""The oracle: dense attention over keys and values side by side, in float64 or, to see what rounding costs, in less.

It knows no blocks: nothing that a block table can get wrong is in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pabench.conformance.kernel.drawing import Content


class Attended(NamedTuple):
    """Results of all query rows, in the order of the sequences."""

    out: torch.Tensor  # [num_tokens, num_q_heads, value_dim] float64
    lse: torch.Tensor  # [num_tokens, num_q_heads] float64, -inf where a row sees nothing


class Weighed(NamedTuple):
    """One sequence half way: [rows, num_q_heads, context] each, in the dtype that was asked for."""

    scores: torch.Tensor  # -inf where a row does not see the position
    seen: torch.Tensor    # [rows, 1, context] bool
    values: torch.Tensor  # [num_q_heads, context, value_dim]


def dense_attention(content: Content, dtype: torch.dtype = torch.float64) -> Attended:
    """Attention of a whole batch, every step of it rounded to `dtype`."""
    outs, lses = [], []
    for seq in range(len(content.queries)):
        scores, seen, values = weigh(content, seq, dtype)
        some = seen.any(-1)  # [rows, 1]
        weights = scores.masked_fill(~some[..., None], 0).softmax(-1)
        out = torch.einsum("mhn,hnd->mhd", weights, values)
        outs.append(out.masked_fill(~some[..., None], 0).double())
        lses.append(scores.logsumexp(-1).double().masked_fill(~some, -torch.inf))
    return Attended(torch.cat(outs), torch.cat(lses))


def weigh(content: Content, seq: int, dtype: torch.dtype) -> Weighed:
    """Scores and values of one sequence, a query head each."""
    query, key, value = (x[seq].to(dtype) for x in (content.queries, content.keys, content.values))
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = torch.einsum("mhd,nhd->mhn", query, key) * content.scale
    if content.soft_cap is not None:
        scores = content.soft_cap * (scores / content.soft_cap).tanh()
    distance = distances(len(query), len(key))
    if content.slopes is not None:
        scores = scores + content.slopes.to(dtype)[None, :, None] * distance[:, None].to(dtype)
    seen = distance <= 0
    if content.window is not None:
        seen &= distance > -content.window
    return Weighed(scores.masked_fill(~seen[:, None], -torch.inf), seen[:, None], value.transpose(0, 1))


def distances(rows: int, context: int) -> torch.Tensor:
    """[rows, context]: key position less that of the query row, which is one of the last `rows` positions."""
    return torch.arange(context)[None] - (context - rows + torch.arange(rows))[:, None]
