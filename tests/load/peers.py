"""Load generators against a server of known timing, one core each: what each says, and what was true. A benchmark.

    python -m tests.load.peers [--streams 64,1000] [--seconds 8] [--only NAME …] [--json FILE]

The fast stub (`pabench stub --fast`) has a core, the generator another; each runs alone, one after the other, on the
same load: so many users, one long answer each, a token every 10 ms. CPU is counted over the smallest load's, the
kernel's share of it too: none that reads each token as it comes can do without that. Peers that are not installed are
left out, and said so (generators.py tells how to install them).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pabench.load.calibrate import TTFT_MS
from pabench.probe import build_checkpoint, preset
from tests.load.generators import BARE_LOOP, PEERS, Peer, chosen, run_beside

ITL_MS = 10.0


def measure(peer: Peer, streams: int, seconds: float, tokenizer: Path) -> dict[str, Any]:
    """One row: what `peer` said, what was true, and what it took of its core."""
    tokens = max(2, round((seconds * 1e3 - TTFT_MS) / ITL_MS))
    said, truth, _, spent = run_beside(peer, streams, tokens, tokenizer, ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    return {"peer": peer.name, "streams": streams, **asdict(said), "stub": truth, **asdict(spent)}


def cost_us(row: dict[str, Any], least: dict[str, Any], what: str) -> float | None:
    """CPU time a token, microseconds, over that of the smallest load: start and end are no part of it.

    `what`: "cpu_s" or "kernel_s".
    """
    tokens = row["stub"]["chunks"] - least["stub"]["chunks"]
    return (row[what] - least[what]) * 1e6 / tokens if tokens > 0 else None


def show(row: dict[str, Any]) -> str:
    """A line of the table, in Markdown."""
    def text(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    times = " | ".join(text(row[f"{name}_ms"]) for name in ("ttft_p50", "itl_p50", "itl_p99"))
    costs = " | ".join(text(row[f"{name}_us_per_token"], 1) for name in ("cpu", "kernel"))
    return (f"| {row['streams']} | {row['peer']} | {times} | {costs} | {row['stub']['late_p99_ms']:.2f} | "
            f"{row['verdict']} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="4,256,1000")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", action="append", default=[], help="name of one generator; more than once for more")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    peers = chosen(given.only, (BARE_LOOP, *PEERS))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "probe"
        build_checkpoint(preset("tiny"), tokenizer)
        print(f"truth: TTFT {TTFT_MS:g} ms, ITL {ITL_MS:g} ms\n\n| streams | generator | TTFT p50 | ITL p50 | "
              "ITL p99 | CPU µs a token | in the kernel | stub late p99 | verdict |\n|" + "---|" * 9, flush=True)
        rows: list[dict[str, Any]] = []
        least: dict[str, dict[str, Any]] = {}
        for streams in map(int, given.streams.split(",")):
            for peer in peers:
                row = measure(peer, streams, given.seconds, tokenizer)
                first = least.setdefault(peer.name, row)
                row |= {f"{name}_us_per_token": cost_us(row, first, f"{name}_s") for name in ("cpu", "kernel")}
                rows.append(row)
                print(show(row), flush=True)
                time.sleep(1.0)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
