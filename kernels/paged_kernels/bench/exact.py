"""Whether a result is right: against dense attention in float64, within what its dtype rounds."""

from __future__ import annotations

import torch

from paged_kernels.bench.subjects import Data

_SEQUENCES, _ROWS, _KV_HEADS = 2, 4, 2  # looked at, of each; the last rows see most


def fault(data: Data, out: torch.Tensor) -> str:
    """What is wrong with `out` [batch * rows, num_q_heads, head_dim], of the first cache; "" when it is right.

    |out - exact| <= 2 |low - exact| + floor, with `low` dense attention in the query's dtype and its error the largest
    of a row; the floor is one rounding of the largest value.
    """
    shape = data.shape
    group, rows = shape.num_q_heads // shape.num_kv_heads, min(_ROWS, shape.rows)
    if out.shape != data.query.shape:
        return f"shape {list(out.shape)}, expected {list(data.query.shape)}"
    for seq in range(min(_SEQUENCES, shape.batch)):
        last = slice((seq + 1) * shape.rows - rows, (seq + 1) * shape.rows)
        for head in range(min(_KV_HEADS, shape.num_kv_heads)):
            heads = slice(head * group, (head + 1) * group)
            query, found = data.query[last, heads], out[last, heads].double()
            key, value = _gathered(data, seq, head)
            exact = _dense(query.double(), key.double(), value.double(), data.scale)
            low = _dense(query, key.to(query.dtype), value.to(query.dtype), data.scale).double()
            floor = torch.finfo(query.dtype).eps * float(value.double().abs().max())
            bound = 2 * (low - exact).abs().amax(-1, keepdim=True) + floor
            wrong = ~((found - exact).abs() <= bound)
            if bool(wrong.any()):
                worst = float((found - exact).abs().nan_to_num(nan=torch.inf).max())
                return f"sequence {seq}, KV head {head}: off by {worst:.3g}, allowed {float(bound.max()):.3g}"
    return ""


def _gathered(data: Data, seq: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [context, head_dim] of one sequence and head."""
    blocks, cache = data.block_tables[seq].long(), data.caches[0]
    key, value = (part[blocks, :, head].flatten(0, 1)[: data.shape.context].float().to(data.shape.query_dtype)
                  for part in (cache.key, cache.value))
    return key, value


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """[rows, group, head_dim], each row seeing the positions up to its own, the last rows of the context."""
    rows, context = query.shape[0], key.shape[0]
    scores = torch.einsum("rgd,cd->rgc", query, key) * scale
    position = torch.arange(context - rows, context, device=query.device)[:, None, None]
    hidden = torch.arange(context, device=query.device) > position
    return torch.einsum("rgc,cd->rgd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)
