"""How far from the oracle a result may be: derived from rounding, never picked.

    |out - exact| <= 2 * |low - exact| + floor

`low` is dense attention with every step rounded to the kernel's own dtype: what is worse than twice that is no
rounding. Its error is taken as the largest of a row, that is of one query token and head over value_dim: an element can
be exact by chance, and a sound kernel may then not be asked to be so too. Since a whole row can be lucky as well,
there is a floor from what one rounding of each step may do at most, in first order: one of each score, of each
weight and of the result to the kernel's dtype, and a few of the sums in float32. With weights p, scores made of
products of size A = sum |q_i k_i| * scale + |bias|, and eps the distance of 1 to the next number of a dtype, it is

    floor  =  eps * max_d sum_n p_n A_n |v_nd - exact_d|  +  (eps + 4 eps32 (1 + max A)) * max |v|
    for the LSE:  eps * sum_n p_n A_n  +  4 eps32 (1 + max A + |lse|)

A fault is far above: a lost position is a needle for some row, and moves it by the size of a value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pabench.conformance.kernel.dense import Attended, dense_attention, distances, weigh
from pabench.conformance.kernel.drawing import Content

_EPS32 = torch.finfo(torch.float32).eps


class Expected(NamedTuple):
    """The oracle's word on a batch."""

    exact: Attended
    out_error: torch.Tensor  # [num_tokens, num_q_heads]: what a row of the result may be off by
    lse_error: torch.Tensor  # [num_tokens, num_q_heads]


def expect(content: Content, dtype: torch.dtype) -> Expected:
    """What a kernel whose queries are of `dtype` has to come to."""
    exact, low = dense_attention(content), dense_attention(content, dtype)
    out_floor, lse_floor = _floors(content, exact, torch.finfo(dtype).eps)
    out_error = 2 * (low.out - exact.out).abs().amax(-1) + out_floor
    empty = exact.lse == -torch.inf
    lse_error = torch.where(empty, 0.0, 2 * (low.lse - exact.lse).abs() + lse_floor)
    return Expected(exact, out_error, lse_error)


def _floors(content: Content, exact: Attended, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What rounding may do at most, of results and of LSE, [num_tokens, num_q_heads] each."""
    out_floors, lse_floors, row = [], [], 0
    for seq, query in enumerate(content.queries):
        rows = slice(row, row + len(query))
        row += len(query)
        if not content.keys[seq].shape[0]:
            out_floors.append(exact.lse.new_zeros(len(query), query.shape[1]))
            lse_floors.append(out_floors[-1])
            continue
        scores, seen, values = weigh(content, seq, torch.float64)
        weights = scores.softmax(-1)
        sizes = _sizes(content, seq)
        moved = _moved(weights * sizes, values, exact.out[rows])
        largest = sizes.where(seen, 0.0).amax(-1)
        top = (values.abs().amax(-1)[None] * seen).amax(-1)
        out_floors.append(eps * moved + (eps + 4 * _EPS32 * (1 + largest)) * top)
        lse_floors.append(eps * (weights * sizes).sum(-1) + 4 * _EPS32 * (1 + largest + exact.lse[rows].abs()))
    return torch.cat(out_floors), torch.cat(lse_floors)


def _moved(weights: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """[rows, num_q_heads], at least max_d sum_n w_n |v_nd - out_d|: sqrt(sum w * sum w (v - out)^2), Cauchy-Schwarz."""
    total = weights.sum(-1, keepdim=True)
    first, second = (torch.einsum("mhn,hnd->mhd", weights, power) for power in (values, values.square()))
    square = (second - 2 * out * first + out.square() * total).clamp_min(0)
    return (square * total).sqrt().amax(-1)


def _sizes(content: Content, seq: int) -> torch.Tensor:
    """[rows, num_q_heads, context]: the size of what each score is a sum of."""
    query, key = content.queries[seq].abs(), content.keys[seq].abs()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    sizes = torch.einsum("mhd,nhd->mhn", query, key) * abs(content.scale)
    if content.slopes is not None:
        bias = content.slopes.double()[None, :, None] * distances(len(query), len(key)).abs()[:, None]
        sizes = sizes + bias
    return sizes
