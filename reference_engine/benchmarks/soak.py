"""Ten thousand requests through the engine in process: does memory grow, and is every token right?

Short rings on the tiny probe, in a pool so small that it is always full: prefix cache with eviction, preemption by
swapping into host blocks that run out too (the rest is recomputed), n of 2 and 3, prompts that come again, aborts in
the middle. Every answer that was not aborted is checked token by token. Memory is told after every tenth: resident
bytes after a collection and after the allocator of the C library has given back what it can, and the number of Python
objects that the collector knows. Growth is counted from the first tenth, when caches and pools are warm, to the end.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pabench.errors import EXIT_INTERRUPTED, EXIT_NOT_CONFORMING, EXIT_OK, PabenchError, UsageError
from pabench.probe import Ring, build_checkpoint, check_answer, draw_rings, preset
from reference_engine.benchmarks.timing import machine_text, output
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import Request, SamplingParams

_IN_FLIGHT = 48
MOST_GROWTH_BYTES = 32 << 20  # caches of the numeric libraries fill as new batch sizes come
MOST_GROWTH_OBJECTS = 5000


@dataclass(frozen=True, slots=True)
class Memory:
    """What the process holds after so many requests."""

    requests: int
    resident_bytes: int
    num_objects: int


@dataclass(slots=True)
class SoakResult:
    """What came of a soak. `wrong` are requests with a token that the oracle does not confirm."""

    finished: int = 0
    aborted: int = 0
    wrong: int = 0
    tokens: int = 0
    memory: list[Memory] = field(default_factory=list)

    def take(self, request: Request, ring: Ring, answers: dict[int, list[int]]) -> None:
        """Check a finished request: every choice there, whole and right."""
        checks = [check_answer(ring, ids) for ids in answers.values()]
        whole = [not check.wrong and check.verified == request.params.max_tokens for check in checks]
        self.tokens += sum(check.verified for check in checks)
        self.wrong += len(checks) != request.params.n or not all(whole)
        self.finished += 1


def soak_engine(folder: Path) -> Engine:
    """An engine on the probe in `folder` whose pools are full all the time."""
    return Engine.from_folder(folder, EngineConfig(
        max_model_len=128, block_size=8, num_blocks=80, max_num_seqs=24, max_num_batched_tokens=96,
        preemption="swap", num_swap_blocks=16,
    ))


def soak(
    engine: Engine, num_requests: int, seed: int = 0, told: Callable[[int], None] = lambda done: None
) -> SoakResult:
    """Run `num_requests`; `told` hears how many are done. Raises IntegrityError when the engine's books are wrong."""
    rng, spec = np.random.default_rng(seed), preset("tiny")
    pool = draw_rings(spec, rng, [int(length) for length in rng.integers(8, 40, 12)])  # prompts that come again
    result, running = SoakResult(), dict[int, tuple[Request, Ring, dict[int, list[int]]]]()
    sent = 0
    while sent < num_requests or running:
        while sent < num_requests and len(running) < _IN_FLIGHT:
            fresh = rng.random() < 0.5
            ring = draw_rings(spec, rng, [int(rng.integers(8, 40))])[0] if fresh else pool[int(rng.integers(len(pool)))]
            n = int(rng.choice([1, 1, 1, 2, 3]))
            params = SamplingParams(max_tokens=int(rng.integers(4, 33)), n=n, ignore_eos=True)
            request = engine.add(ring.prompt, params)
            running[request.id] = (request, ring, {})
            sent += 1
        for request, token in engine.step():
            running[request.id][2].setdefault(token.index, []).append(token.token_id)
        ended = [request for request, _, _ in running.values() if not request.sequences]
        if rng.random() < 0.02:
            victim = running[int(rng.choice(list(running)))][0]
            if victim.sequences:
                engine.abort(victim)
                del running[victim.id]
                result.aborted += 1
        for request in ended:
            result.take(*running.pop(request.id))
        done = result.finished + result.aborted
        told(done)
        if done >= (len(result.memory) + 1) * num_requests / 10:
            result.memory.append(remember(done))
    engine.scheduler.check_integrity()
    return result


def remember(requests: int) -> Memory:
    """What the process holds now, after all that can be given back has been."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return Memory(requests, _resident_bytes(), len(gc.get_objects()))


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        raise UsageError("the soak reads its memory from /proc/self/statm, which this system lacks") from None


def has_grown(result: SoakResult) -> bool:
    """Whether memory at the end is more than the first tenth of the requests had, beyond what caches may take."""
    first, last = result.memory[0], result.memory[-1]
    return (last.resident_bytes - first.resident_bytes > MOST_GROWTH_BYTES
            or last.num_objects - first.num_objects > MOST_GROWTH_OBJECTS)


def show(engine: Engine, result: SoakResult) -> None:
    """The table and the verdict."""
    out, stats = output(), engine.scheduler.stats
    table = Table(title="memory", title_justify="left")
    for column in ("after requests", "resident, MiB", "since the first tenth, KiB", "Python objects", "since"):
        table.add_column(column, justify="right")
    first = result.memory[0]
    for one in result.memory:
        table.add_row(f"{one.requests:,}", f"{one.resident_bytes / 2**20:,.1f}",
                      f"{(one.resident_bytes - first.resident_bytes) / 2**10:+,.0f}", f"{one.num_objects:,}",
                      f"{one.num_objects - first.num_objects:+,}")
    out.print(table)
    out.print(f"{result.finished:,} finished, {result.aborted:,} aborted, {result.wrong:,} wrong; "
              f"{result.tokens:,} tokens verified")
    out.print(f"{stats.preemptions:,} preemptions, {stats.swapped_out_blocks:,} blocks swapped out, "
              f"{stats.recomputed_tokens:,} tokens recomputed, {stats.prefix_hits:,} of {stats.prefix_queries:,} "
              "prompt tokens found in the prefix cache")
    out.print(f"memory {'HAS GROWN' if has_grown(result) else 'has not grown'} by more than "
              f"{MOST_GROWTH_BYTES / 2**20:.0f} MiB or {MOST_GROWTH_OBJECTS:,} objects since the first tenth")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, 1 when an answer was wrong or memory has grown."""
    p = argparse.ArgumentParser(prog="python -m reference_engine.benchmarks.soak", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--requests", type=int, default=10_000, help="requests in all (default 10000)")
    p.add_argument("--seed", type=int, default=0, help="of prompts, lengths and aborts")
    args = p.parse_args(argv)
    try:
        if args.requests < 10:
            raise UsageError(f"--requests is {args.requests}, expected at least 10")
        print(machine_text())
        with tempfile.TemporaryDirectory() as folder:
            build_checkpoint(preset("tiny"), Path(folder))
            engine = soak_engine(Path(folder))
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("requests", total=args.requests)
            result = soak(engine, args.requests, args.seed, lambda done: bar.update(task, completed=done))
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    show(engine, result)
    return EXIT_NOT_CONFORMING if result.wrong or has_grown(result) else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
