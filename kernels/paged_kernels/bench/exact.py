"""Whether a result is right: against dense attention in float64, within what its dtype rounds."""

from __future__ import annotations

import itertools

import torch

from paged_kernels.bench.subjects import Data


def fault(data: Data, out: torch.Tensor) -> str:
    """What is wrong with `out` [batch * rows, num_q_heads, head_dim], of the first cache; "" when it is right.

    Errors are taken relative to the largest exact element of their row and head: a long context averages values to far
    below one rounding of their own. Allowed is twice the largest error of dense attention in the query's dtype over
    the rows of a KV head, and one rounding, of float32 eight: what computes in it rounds scores, exponentials and sums,
    in an order of its own. The conformance suite derives 4 (1 + A) of them, A the size of a score, which is more.
    """
    shape = data.shape
    if out.shape != data.query.shape:
        return f"shape {list(out.shape)}, expected {list(data.query.shape)}"
    seqs, rows, kv_heads = shape.checked
    group, at = shape.num_q_heads // shape.num_kv_heads, torch.tensor(rows, device=out.device)
    position = shape.context - shape.rows + at
    floor = max(torch.finfo(data.query.dtype).eps, 8 * torch.finfo(torch.float32).eps)
    for seq, head in itertools.product(seqs, kv_heads):
        heads = slice(head * group, (head + 1) * group)
        query, found = (x[seq * shape.rows + at, heads] for x in (data.query, out))
        key, value = _gathered(data, seq, head)
        exact = _dense(query.double(), key.double(), value.double(), position, data.scale)
        low = _dense(query, key, value, position, data.scale).double()
        unit = exact.abs().amax(-1, keepdim=True)
        bound = unit * (2 * ((low - exact).abs() / unit).max() + floor)
        error = (found.double() - exact).abs()
        if not bool((error <= bound).all()):
            row, member, _ = (int(i) for i in (~(error <= bound)).nonzero()[0])
            worst = float(error[row, member].nan_to_num(nan=torch.inf).max())
            return (f"sequence {seq}, row {rows[row]}, query head {head * group + member}: off by {worst:.3g}, "
                    f"allowed {float(bound[row, member]):.3g}")
    return ""


def _gathered(data: Data, seq: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [context, head_dim] of one sequence and head."""
    blocks, cache = data.block_tables[seq].long(), data.caches[0]
    key, value = (part[blocks, :, head].flatten(0, 1)[: data.shape.context].float().to(data.shape.query_dtype)
                  for part in (cache.key, cache.value))
    return key, value


def _dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor, scale: float
) -> torch.Tensor:
    """[rows, group, head_dim], the row at position[row] seeing the positions up to its own."""
    scores = torch.einsum("rgd,cd->rgc", query, key) * scale
    hidden = torch.arange(len(key), device=query.device) > position[:, None, None]
    return torch.einsum("rgc,cd->rgd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)
