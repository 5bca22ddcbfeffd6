"""What a wrong row is, where a simple fault explains it: positions it lacks, another head's, an option not applied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from pabench.conformance.kernel.cases import AttendCase
from pabench.conformance.kernel.dense import weigh
from pabench.conformance.kernel.drawing import Content


def explain(
    case: AttendCase, content: Content, row: int, head: int, got: torch.Tensor, error: float
) -> tuple[str, str]:
    """What row `row` [value_dim] of query head `head` reads instead, and a hint; both may be ""."""
    if got.isnan().any() or got.isinf().any():
        return "NaN or infinity: something that is not the sequence's", (
            "dead slots, unused table entries and new memory hold NaN; a weight of zero times NaN is NaN: do not read "
            "them, or read zero")
    seq, local = _find(case, row)
    for said, hint, out in _faults(case, content, seq, local, head):
        if (out - got).abs().max() <= error:
            return said, hint
    return "", ""


def _find(case: AttendCase, row: int) -> tuple[int, int]:
    """Sequence of a row of the batch, and its number there."""
    for seq, rows in enumerate(case.query_lens):
        if row < rows:
            return seq, row
        row -= rows
    raise IndexError(f"the batch has no row {row}")


def _faults(
    case: AttendCase, content: Content, seq: int, row: int, head: int
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """What is said of a fault, a hint, and what dense attention gives with it."""
    def attended(other: Content, at: int = head) -> torch.Tensor:
        weighed = weigh(other, seq, torch.float64)
        return weighed.scores[row, at].softmax(-1) @ weighed.values[at]

    if not len(content.keys[seq]):
        return
    if content.soft_cap is not None:
        yield "as without the soft cap", "soft_cap * tanh(score / soft_cap)", attended(replace(content, soft_cap=None))
    if content.slopes is not None:
        yield "as without ALiBi", "slope of the query head times the distance", attended(replace(content, slopes=None))
    if content.window is not None:
        for window in (content.window - 1, content.window + 1, None):
            if window != 0:
                yield (f"as with a window of {window}" if window else "as without the window",
                       "a row at p sees [p - W + 1, p]", attended(replace(content, window=window)))
    yield from _of_other_heads(case, content, seq, row, head)
    yield from _with_less(content, seq, row, head)
    yield "zero", "the row is not computed", torch.zeros_like(content.values[seq][0, 0])


def _of_other_heads(
    case: AttendCase, content: Content, seq: int, row: int, head: int
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """As though the keys and values of another KV head were its own."""
    own = head // case.group
    for other in range(case.form.num_kv_heads):
        if other != own:
            keys, values = list(content.keys), list(content.values)
            keys[seq], values[seq] = (x.roll(own - other, dims=1) for x in (keys[seq], values[seq]))
            weighed = weigh(replace(content, keys=keys, values=values), seq, torch.float64)
            yield (f"KV head {other} rather than {own}", f"query head h reads KV head h // {case.group}",
                   weighed.scores[row, head].softmax(-1) @ weighed.values[head])


def _with_less(content: Content, seq: int, row: int, head: int) -> Iterator[tuple[str, str, torch.Tensor]]:
    """As though a range of the positions that it sees were not there: the last ones, the first ones, one between."""
    weighed = weigh(content, seq, torch.float64)
    scores, values = weighed.scores[row, head], weighed.values[head]
    seen = weighed.seen[row, 0].nonzero().flatten().tolist()
    first, last = seen[0], seen[-1]
    ranges = [(at, last) for at in range(last, first, -1)] + [(first, at) for at in range(first, last)]
    ranges += [(at, at) for at in range(first + 1, last)]
    for start, stop in ranges:
        less = scores.clone()
        less[start : stop + 1] = -torch.inf
        which = f"position {start}" if start == stop else f"positions {start} to {stop}"
        end = "last" if stop == last else "first" if start == first else ""
        yield (f"all that it has to, but for {which}" + (f", the {end} that it sees" if end else ""),
               "look at the bounds of loops and masks", less.softmax(-1) @ values)
