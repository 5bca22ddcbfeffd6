"""How well an open loop keeps its schedule, and what a long run costs in memory. A benchmark.

    python -m tests.load.open_loop [--rate 2000] [--requests 20000] [--tokens 8] [--tokens-per-chunk 1]

Poisson arrivals against the fast stub, each on a core of its own. The index of dispersion of counts (variance over
mean, 1 for a Poisson process) is told for windows of three lengths, of the schedule and of what was sent.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pabench.analysis import load_run, summarise
from pabench.engines.doctor import examine
from pabench.engines.launch import EngineProcess
from pabench.load import load_workload, run_loop, run_workload
from pabench.load.calibrate import fast_stub
from tests.load.generators import on_core, write_workload

_WINDOWS_S = (0.005, 0.02, 0.1)


def dispersion(times_s: NDArray[np.float64], window_s: float) -> float:
    """Variance over mean of the counts in windows of `window_s`; `times_s` are `[count]` seconds from 0."""
    counts = np.histogram(times_s, np.arange(0, times_s.max() - window_s, window_s))[0]
    return float(counts.var() / counts.mean())


def _stub(folder: Path, tokens_per_chunk: int) -> EngineProcess:
    return fast_stub(folder, ttft_ms=20.0, itl_ms=10.0, tokens_per_chunk=tokens_per_chunk, stamps=False)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    given = parser.parse_args()
    stub_core, own_core = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload = write_workload(folder, requests=given.requests, tokens=given.tokens,
                                  arrivals=f'kind = "poisson", rate_per_s = {given.rate}')
        with on_core(stub_core), _stub(folder, given.tokens_per_chunk) as stub, on_core(own_core):
            start_s = time.monotonic()
            manifest = run_loop(run_workload(run_loop(examine(stub.url)), load_workload(workload),
                                             folder / "run", url=stub.url, label="stub"))
            whole_s = time.monotonic() - start_s
        recorded_gib = _peak_gib()
        run = load_run(folder / "run")
        sent, intended = (np.sort(run.requests[column].to_numpy()) for column in ("sent_s", "intended_s"))
        late_ms = (run.requests["sent_s"] - run.requests["intended_s"]).to_numpy() * 1e3
        p50, p99, most = np.quantile(late_ms, [0.5, 0.99, 1.0])
        verdict = "VALID" if summarise(run).validity.valid else "INVALID"
        print(f"{manifest.outcomes['ok']} of {given.requests} ok, {verdict}; "
              f"{manifest.duration_s:.1f} s and {whole_s - manifest.duration_s:.1f} s to read the answers and write")
        print(f"delivered {(intended[-1] - intended[0]) / (sent[-1] - sent[0]):.2%} of the intended rate; late p50 "
              f"{p50:.2f}, p99 {p99:.2f}, at most {most:.2f} ms; {manifest.client.cpu_share:.0%} of a core")
        for window_s in _WINDOWS_S:
            print(f"index of dispersion over {window_s * 1e3:g} ms: schedule {dispersion(intended, window_s):.3f}, "
                  f"sent {dispersion(sent, window_s):.3f}")
        print(f"memory at most {recorded_gib:.2f} GiB until all was recorded, {_peak_gib():.2f} until it was judged")


if __name__ == "__main__":
    main()
