"""Rows as they are measured, the JSON file that keeps them, and the table."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import triton

from paged_kernels.bench.shapes import Shape
from paged_kernels.bench.subjects import IN_A_ROW, OURS


@dataclass(slots=True)
class Row:
    """One subject on one shape. `failure` says why it has no time, or what was wrong with its result."""

    subject: str
    shape: Shape
    repeats_ms: list[float] = field(default_factory=list)
    timed: str = ""  # graph, eager or interpreter
    failure: str = ""
    cold: bool = True  # whether all copies of the data together exceed the cache

    @property
    def median_ms(self) -> float | None:
        """Of the repeats."""
        return median(self.repeats_ms) if self.repeats_ms else None

    @property
    def spread(self) -> float | None:
        """Distance of the quartiles over the median."""
        if len(self.repeats_ms) < 2:
            return None
        low, middle, high = quantiles(self.repeats_ms, n=4)
        return (high - low) / middle


@dataclass(slots=True)
class Record:
    """All of a run."""

    environment: dict[str, Any]
    read_bandwidth: float | None  # bytes a second, before the first shape; None in the interpreter
    missing: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # shape -> why
    read_bandwidth_afterwards: float | None = None  # after the last: a device that grew hot is slower

    def write(self, path: Path) -> None:
        """All so far, in one step: what is there is whole at any time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        rows = [{**asdict(row), "median_ms": row.median_ms, "spread": row.spread} for row in self.rows]
        temporary.write_text(json.dumps({"schema": 1, **asdict(self), "rows": rows}, indent=1) + "\n")
        temporary.replace(path)

    def table(self) -> str:
        """Markdown: a row a shape, ours with its share of the bandwidth, and how much longer each peer takes.

        With one block a sequence it is the other way round: how much longer ours takes, for its blocks.
        """
        peers = [name for name in dict.fromkeys(row.subject for row in self.rows) if name != OURS]
        heads = ["shape", "ms", "spread", "GB/s", "of read bandwidth", "TFLOP/s", *map(_ratio_of, peers)]
        lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for shape in dict.fromkeys(row.shape for row in self.rows):
            rows = {row.subject: row for row in self.rows if row.shape == shape}
            lines.append(f"| {' | '.join([str(shape), *self._ours(rows[OURS]), *self._ratios(rows, peers)])} |")
        return "\n".join([*self._head(), "", *lines, *self._foot()])

    def _head(self) -> list[str]:
        told = f"{self.environment['device']}, torch {self.environment['torch']}, Triton {self.environment['triton']}"
        if self.read_bandwidth is None:
            return [told, "", "**In Triton's interpreter: times mean nothing here**, and no bandwidth is given."]
        after = self.read_bandwidth_afterwards
        then = "" if after is None else f", afterwards {after / 1e9:.0f} GB/s"
        return [f"{told}; a streaming read reaches {self.read_bandwidth / 1e9:.0f} GB/s{then}."]

    def _foot(self) -> list[str]:
        lines = [f"- {name}: not here ({why})" for name, why in self.missing.items()]
        lines += [f"- left out: {shape} ({why})" for shape, why in self.left_out.items()]
        return ["", *lines] if lines else []

    def _ours(self, row: Row) -> list[str]:
        took = row.median_ms
        if row.failure or took is None:
            return [row.failure or "–", *["–"] * 4]
        spread = "–" if row.spread is None else f"{row.spread:.0%}"
        if self.read_bandwidth is None:
            return [f"{took:.3f}", spread, "–", "–", "–"]
        rate, flops = row.shape.moved_bytes / (took * 1e-3), row.shape.flops / (took * 1e-3)
        share = f"{rate / self.read_bandwidth:.0%}" if row.shape.rows == 1 and row.cold else "–"
        return [f"{took:.3f}", spread, f"{rate / 1e9:.0f}", share, f"{flops / 1e12:.1f}"]

    def _ratios(self, rows: dict[str, Row], peers: Sequence[str]) -> list[str]:
        told, ours = [], rows[OURS].median_ms
        for name in peers:
            row = rows.get(name)
            if row is None or row.median_ms is None or ours is None or row.failure:
                told.append("–" if row is None or not row.failure else row.failure.replace("|", "/")[:60])
            else:
                eager = "" if row.timed == rows[OURS].timed else " (eager)"
                ratio = ours / row.median_ms if name == IN_A_ROW else row.median_ms / ours
                told.append("right" if self.read_bandwidth is None else f"{ratio:.2f}{eager}")
        return told


def _ratio_of(peer: str) -> str:
    """The head of a peer's column."""
    return f"ours / {peer}" if peer == IN_A_ROW else f"{peer} / ours"


def environment(where: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    told = {"device": "CPU", "python": platform.python_version(), "torch": torch.__version__,
            "triton": triton.__version__, "commit": _output("git", "rev-parse", "HEAD")}
    if where.type == "cuda":
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        told |= {"device": torch.cuda.get_device_name(where), "driver": driver, "cuda": torch.version.cuda}
    return told


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
