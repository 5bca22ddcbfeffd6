"""Load generators in an open loop, one core each: what reached the server, by the server's clock. A benchmark.

    python -m tests.load.peers_open_loop [--rates 200,2000] [--requests 20000] [--only NAME …]

Poisson arrivals at the fast stub (TTFT 20 ms, a token every 10 ms). Delivered: the rate between the first and the last
twentieth of the requests, over the rate asked for; chance alone moves it by 0.7 % with 20 000 requests. Index of
dispersion of counts (variance over mean, 1 for a Poisson process) in windows of 20 ms between them. Peers that are not
installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from pabench.probe import build_checkpoint, preset
from tests.load.generators import Peer, chosen, run_beside
from tests.load.open_loop import dispersion

TTFT_MS, ITL_MS = 20.0, 10.0
_WINDOW_S = 0.02
_MOST_S = 20.0  # of one run, by the rate asked for


def row(peer: Peer, rate_per_s: float, requests: int, tokens: int, tokenizer: Path) -> str:
    """A line of the table, in Markdown."""
    said, truth, arrived_ns, spent = run_beside(peer, requests, tokens, tokenizer, ttft_ms=TTFT_MS, itl_ms=ITL_MS,
                                                rate_per_s=rate_per_s)
    times_s = np.sort(np.asarray(arrived_ns)) / 1e9
    edge = len(times_s) // 20  # trial requests and opening of connections come first
    inner = times_s[edge:len(times_s) - edge]
    delivered = (len(inner) - 1) / (inner[-1] - inner[0]) / rate_per_s
    spread = dispersion(inner - inner[0], _WINDOW_S)
    ttft = "–" if said.ttft_p50_ms is None else f"{said.ttft_p50_ms:.2f}"
    return (f"| {rate_per_s:g} | {peer.name} | {len(times_s)} | {delivered:.1%} | {spread:.2f} | {ttft} | "
            f"{spent.cpu_s:.1f} | {truth['late_p99_ms']:.2f} | {said.verdict} |")


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="200,2000")
    parser.add_argument("--requests", type=int, default=20_000, help="At most; fewer where they take over 20 s.")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--only", action="append", default=[], help="name of one generator; more than once for more")
    given = parser.parse_args()
    peers = chosen(given.only)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "probe"
        build_checkpoint(preset("tiny"), tokenizer)
        print(f"truth: TTFT {TTFT_MS:g} ms, dispersion 1\n\n| requests/s | generator | came | delivered | dispersion | "
              "TTFT p50, as it says | CPU s | stub late p99, ms | verdict |\n|" + " --- |" * 9, flush=True)
        for rate_per_s in map(float, given.rates.split(",")):
            for peer in peers:
                requests = min(given.requests, int(rate_per_s * _MOST_S))
                print(row(peer, rate_per_s, requests, given.tokens, tokenizer), flush=True)
                time.sleep(1.0)


if __name__ == "__main__":
    main()
