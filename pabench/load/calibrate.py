"""The client's own error: what it notes as a token's arrival, against when the stub wrote it, on this host's one clock.

The stub stamps each chunk with the moment of its writing. The rest of the chain is that of a run: schedule, client,
journal, lag watch. What is left is the kernel's loopback and the client; the stub's own lateness is not in it.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pabench.engines import EngineProcess
from pabench.engines.base import EngineFacts
from pabench.errors import EngineError, UsageError
from pabench.load.connection import Exchange
from pabench.load.journal import Journaled, journals_in
from pabench.load.line import clock
from pabench.load.loop import run_loop
from pabench.load.manifest import ClientHealth
from pabench.load.planning import plan
from pabench.load.pool import ONE_PROCESS, Placement, WorkerPool, split_job
from pabench.load.worker import Job
from pabench.load.workload import Workload, parse_workload

TTFT_MS = 50.0
_STAMP = re.compile(rb'"pabench_sent_ns":\s*(\d+)')
_FACTS = EngineFacts("openai", "stub", 65536, capabilities=frozenset({"stream", "usage", "ignore_eos"}))


@dataclass(frozen=True, slots=True)
class ClientError:
    """At one number of streams. Errors in milliseconds: of a token's arrival, of the gap between two."""

    streams: int
    itl_ms: float              # as the stub was told
    seconds: float
    num_tokens: int
    arrival_p50_ms: float
    arrival_p99_ms: float
    arrival_max_ms: float
    gap_p99_ms: float          # of the absolute error
    cpu_share: float | None    # of one core
    lag_p99_ms: float | None   # what the run itself would have known

    @property
    def tokens_per_s(self) -> float:
        """Delivered."""
        return self.num_tokens / self.seconds


def calibrate(
    streams: int, *, itl_ms: float = 10.0, duration_s: float = 5.0, placement: Placement = ONE_PROCESS
) -> ClientError:
    """Run `streams` users against a stub in a process of its own. Raises UsageError and EngineError."""
    if streams < 1 or not 0 < itl_ms < math.inf or not 0 < duration_s < math.inf:
        raise UsageError(f"a calibration needs streams, a gap between tokens and a duration above 0: got {streams}, "
                         f"{itl_ms:g} ms, {duration_s:g} s")
    with tempfile.TemporaryDirectory() as folder, fast_stub(Path(folder), ttft_ms=TTFT_MS, itl_ms=itl_ms) as stub:
        return run_loop(_measure(stub.url, streams, itl_ms, duration_s, Path(folder), placement))


def fast_stub(
    folder: Path, *, ttft_ms: float, itl_ms: float, tokens_per_chunk: int = 1, stamps: bool = True
) -> EngineProcess:
    """The fast stub as a process of its own, on a free port; its output goes into `folder`."""
    command = [sys.executable, "-m", "pabench", "stub", "--fast", "--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms),
               "--tokens-per-chunk", str(tokens_per_chunk), "--port", "{port}", *([] if stamps else ["--no-stamps"])]
    return EngineProcess(command, url="http://127.0.0.1:{port}", log=folder / "stub.log")


def _load(streams: int, itl_ms: float, duration_s: float) -> Workload:
    """So many users that each get one answer that lasts."""
    tokens = max(2, round((duration_s * 1e3 - TTFT_MS) / itl_ms))
    return parse_workload({
        "name": "calibration", "description": "One long answer a stream.", "prompt": "text", "num_requests": streams,
        "prompt_tokens": {"law": "fixed", "tokens": 8}, "output_tokens": {"law": "fixed", "tokens": tokens},
        "arrivals": {"kind": "closed", "users": streams}, "timeout_s": 10 * duration_s + 30, "warmup_requests": 0,
    }, "calibration")


async def _measure(
    url: str, streams: int, itl_ms: float, duration_s: float, folder: Path, placement: Placement
) -> ClientError:
    load = _load(streams, itl_ms, duration_s)
    lanes = plan(load, 0, _FACTS, None, "calibration").lanes()
    jobs = split_job(Job(url, load, "openai", "stub", lanes, (), folder), placement.processes)
    async with WorkerPool(placement.workers_for(jobs)) as pool:
        await pool.prepare()
        start_s = clock() + placement.lead_s
        await pool.run(start_s, lambda _: None)
        end = pool.end
    with Journaled(journals_in(folder), end.left) as found:
        exchanges = [found.whole(exchange) for exchange in found.exchanges.values()]
    failed = [exchange for exchange in exchanges if exchange.fault is not None or exchange.status != 200]
    if failed:
        why = failed[0].fault_text or failed[0].fault or f"HTTP {failed[0].status}"
        raise EngineError(f"{len(failed)} of {len(exchanges)} streams of the calibration broke: {why}")
    return _error(exchanges, start_s, streams, itl_ms, end.health)


def _error(
    exchanges: Sequence[Exchange], start_s: float, streams: int, itl_ms: float, health: ClientHealth
) -> ClientError:
    """`start_s`: the zero of the exchanges' times, on the stamps' clock."""
    pairs = [arrivals(exchange) for exchange in exchanges]
    late = np.concatenate([seen + start_s - sent for seen, sent in pairs]) * 1e3
    gaps = np.concatenate([np.diff(seen) - np.diff(sent) for seen, sent in pairs]) * 1e3
    p50, p99 = np.quantile(late, [0.5, 0.99])
    return ClientError(streams, itl_ms, max(exchange.end_s or 0.0 for exchange in exchanges), len(late), float(p50),
                       float(p99), float(late.max()), float(np.quantile(np.abs(gaps), 0.99)), health.cpu_share,
                       health.loop_lag_p99_ms)


def arrivals(exchange: Exchange) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(noted as arrived, stamped as written) of each chunk with a stamp: `[num_stamps]` float64 seconds, each on its
    own clock.

    A chunk has come with its last byte.
    """
    ends = np.asarray(list(accumulate(map(len, exchange.pieces))))
    found = list(_STAMP.finditer(b"".join(exchange.pieces)))
    pieces = np.searchsorted(ends, [match.end() for match in found])
    seen = np.asarray(exchange.times_s, dtype=np.float64)[pieces]
    return seen, np.asarray([int(match[1]) for match in found], dtype=np.float64) / 1e9
