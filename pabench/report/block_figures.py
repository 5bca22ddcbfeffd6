"""The block map: who owned which block over time, one figure an engine, all on one time axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from pabench.report.blocks import run_zero
from pabench.report.figures import Figure, axis, spec
from pabench.report.groups import Engine, RunData
from pabench.report.palette import OWNERS
from pabench.report.text import DOUBTED, count, number, percent
from pabench.telemetry.block_map import UNKNOWN, BlockMap, block_map, state_shares
from pabench.telemetry.block_trace import BlockTrace, State

_PALE = 0.3  # opacity of what is owned and empty
_WRITTEN = (State.PARTIAL, State.FULL)
# Colours that start with "--" are the page's own, of its light or dark theme.
_FREE, _CACHED, _SHARED = "--map-free", "--map-cached", "--map-shared"
_COLOURS = (_FREE, _CACHED, _SHARED, *OWNERS, *(f"{colour}{round(255 * _PALE):02x}" for colour in OWNERS))
_FIRST_OWNER = 3


def block_figures(runs: Sequence[tuple[Engine, RunData]], key: str) -> list[Figure]:
    """A map of each run that has a trace, all from 0 to the end of the longest."""
    traced = [(engine, run, run.blocks) for engine, run in runs if run.blocks is not None]
    longest = max((run.manifest.duration_s or 0.0 for _, run, _ in traced), default=0.0)
    if longest <= 0:
        return []
    zeros = [(run_zero(run.manifest) - trace.header.started_at).total_seconds() for _, run, trace in traced]
    maps = [block_map(trace, zero_s, zero_s + longest) for (_, _, trace), zero_s in zip(traced, zeros, strict=True)]
    legend = _legend(maps)
    return [
        _figure(*one, cells, legend, key) for one, cells in zip(traced, maps, strict=True)
    ]


def _figure(
    engine: Engine, run: RunData, trace: BlockTrace, cells: BlockMap, legend: Sequence[go.Scatter], key: str
) -> Figure:
    zero_s, longest = cells.start_s, cells.column_s * len(cells.state)
    shares = state_shares(trace, zero_s, zero_s + (run.manifest.duration_s or 0.0))
    y = axis("block", range=[-0.5, trace.header.num_blocks - 0.5])
    body = spec([_heatmap(cells, trace), *legend], axis("time (s)", range=[0, longest]), y)
    body["layout"] |= {"showlegend": True,
                       "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11},
                                  "entrywidth": 58, "itemclick": False, "itemdoubleclick": False}}
    title = f"Block map of {engine.name}"
    told = _shares_text(shares)
    caption = " ".join(_caption(run, trace, cells, zero_s, told))
    alt = f"{title} over time: who owns each of {count(trace.header.num_blocks)} blocks. Share of block-time: {told}."
    return Figure(f"blocks-{key}-{engine.index}", title, caption, alt, body, engine.index, height=380)


def _heatmap(cells: BlockMap, trace: BlockTrace) -> go.Heatmap:
    """The map as runs of equal cells along each row, which script.js unrolls: `rows` are [length, kind, …], `kinds`
    [colour, hover text].
    """
    ids = (cells.owner.T + 1) * 256 + cells.state.T  # [rows, columns]
    found, kinds = np.unique(ids, return_inverse=True)
    kinds = kinds.reshape(ids.shape)
    rows = []
    for row in kinds:
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        lengths = np.diff(starts, append=len(row))
        rows.append(np.column_stack((lengths, row[starts])).ravel().tolist())
    told = [_kind(int(one) % 256, int(one) // 256 - 1, trace) for one in found]
    per_row = cells.blocks_per_row
    what = "block %{y}" if per_row == 1 else f"{per_row} blocks around %{{y}}"
    return go.Heatmap(
        x0=cells.column_s / 2, dx=cells.column_s, y0=(per_row - 1) / 2, dy=per_row, z=[],
        meta={"map": {"rows": rows, "kinds": told, "colours": _COLOURS}},
        showscale=False, hoverongaps=False, zsmooth=False,
        hovertemplate=f"{what} at %{{x:.3~f}} s<br>%{{text}}<extra></extra>",
    )


def _kind(state: int, seq: int, trace: BlockTrace) -> tuple[int | None, str]:
    """(colour, None for what was not recorded; hover text) of one kind of cell."""
    size = trace.header.block_size
    if state == UNKNOWN:
        return None, ""
    if state == State.FREE:
        return 0, "free"
    if state == State.CACHED:
        return 1, "no owner, kept for the prefix cache"
    owner = f"sequence {seq} of request {trace.requests[seq]}"
    if state == State.SHARED:
        return 2, f"shared by {owner} and others"
    colour = _FIRST_OWNER + seq % len(OWNERS)
    if state == State.EMPTY:
        return colour + len(OWNERS), f"{owner}: reserved, nothing written"
    return colour, f"{owner}: {size} tokens, full" if state == State.FULL else f"{owner}: not yet all of {size} tokens"


def _legend(maps: Sequence[BlockMap]) -> list[go.Scatter]:
    """A key of the states that occur, the same for all maps, so that all are of one height. Those of the written and
    the reserved stand for all owners' colours.
    """
    entries = (
        (_WRITTEN, "written", OWNERS[0]),
        ((State.EMPTY,), "reserved", _COLOURS[_FIRST_OWNER + len(OWNERS)]),
        ((State.SHARED,), "shared", _SHARED),
        ((State.CACHED,), "cached", _CACHED),
        ((State.FREE,), "free", _FREE),
    )
    return [
        go.Scatter(x=[None], y=[None], name=name, mode="markers", hoverinfo="skip",
                   marker={"symbol": "square", "size": 11, "color": None if colour.startswith("--") else colour},
                   meta={"colour": colour})
        for states, name, colour in entries if any(np.isin(cells.state, states).any() for cells in maps)
    ]


def _shares_text(shares: dict[State, float]) -> str:
    written = sum(shares.get(state, 0.0) for state in (*_WRITTEN, State.SHARED))
    parts = [("blocks with tokens", written), ("reserved and empty", shares.get(State.EMPTY, 0.0)),
             ("cached", shares.get(State.CACHED, 0.0)), ("free", shares.get(State.FREE, 0.0))]
    return ", ".join(f"{name} {percent(share)}" for name, share in parts if share > 0) or "nothing recorded"


def _caption(run: RunData, trace: BlockTrace, cells: BlockMap, zero_s: float, told: str) -> list[str]:
    header = trace.header
    said = [f"Each row is a block of {count(header.block_size)} slots, each colour a sequence, in turn.",
            "Full colour: holds tokens. Pale: reserved for the sequence, nothing written in it yet."]
    said.append(f"On average over the run: {told}.")
    if cells.blocks_per_row > 1:
        said.append(f"{count(cells.blocks_per_row)} neighbouring blocks are one row.")
    said.append(f"A cell ({number(1000 * cells.column_s, 2)} ms) shows what held longest in it.")
    missing_s = zero_s + (run.manifest.duration_s or 0.0) - trace.end_s
    if missing_s > 0.1 and trace.end != "closed":
        why = {"limit": "the file had reached its limit", "cut off": "the file ends"}[trace.end]
        said.append(f"Recorded to {number(trace.end_s - zero_s)} s, then {why}.")
    if not run.believable:
        said.append(f"{DOUBTED.capitalize()}.")
    if run.manifest.zero_at is None:
        said.append("This run does not tell its exact start: the map may lie up to a few seconds off.")
    return said
