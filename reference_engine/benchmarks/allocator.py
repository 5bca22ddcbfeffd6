"""What a block costs: the paged allocator, and beside it vLLM's own, on one sequence of operations.

ShareGPT-like sequences come, grow by a token each in turn, and go, 256 of them at once. Both get the same number of
blocks, and both are asked for the same; garbage collection is off in both, and times are CPU times. Five comparisons:

pool     blocks out of the free ones and back, no tables. vLLM: BlockPool.get_new_blocks and free_blocks. Here: what
         allocate, append and free do with each block.
blocks   a call for each new block. Here: the whole allocator, tables too: allocate, append (of a block) and free. vLLM:
         as before, there is nothing between the pool and the manager.
tokens   a call for each token. vLLM: KVCacheManager.allocate_slots and free, no caching. Here: allocate, append, free.
caching  the same with prefix caching and hits, keys of the blocks computed beforehand. vLLM: get_computed_blocks too.
         Here: publish too.
hashing  the same, with the keys computed on the way: vLLM by sha256 over pickled tokens (its default), here by blake2b.

vLLM's time is that of its own Python code in its own process; the two run in turns. A block's time is that of all
operations over the number of blocks in all tables, found ones included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from pabench.errors import EXIT_INTERRUPTED, EXIT_OK, PabenchError, UsageError
from reference_engine.benchmarks.timing import Spread, in_turns, machine_text, no_collections, output
from reference_engine.benchmarks.trace import ALLOCATE, APPEND, AllocatorTrace, draw_trace
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import extend_keys, root_key

COMPARISONS = ("pool", "blocks", "tokens", "caching", "hashing")
_ROOT = root_key("")
_VLLM_SIDE = Path(__file__).with_name("vllm_blocks.py")


def pool(trace: AllocatorTrace) -> dict[str, float]:
    """Blocks alone."""
    size, prompts = trace.block_size, trace.prompt_tokens
    allocator, held, ops = PagedAllocator(trace.num_blocks, size), [[0] for _ in prompts], trace.block_ops
    take, drop = allocator._take, allocator._drop
    with no_collections():
        start = time.process_time()
        for what, i in ops:
            if what == APPEND:
                held[i] += take(1)
            elif what == ALLOCATE:
                held[i] = take(-(-prompts[i] // size))
            else:
                drop(reversed(held[i]))
                held[i] = []
        return _end(start, allocator, 0)


def blocks(trace: AllocatorTrace) -> dict[str, float]:
    """Grow by blocks, as this engine's scheduler does."""
    size, prompts = trace.block_size, trace.prompt_tokens
    finals = [len(text) for text in trace.tokens]
    allocator, held, ops = PagedAllocator(trace.num_blocks, size), list(prompts), trace.block_ops
    with no_collections():
        start = time.process_time()
        for what, i in ops:
            if what == APPEND:
                at = held[i] = -(-held[i] // size) * size  # the block before was asked for as a whole
                more = min(size, finals[i] - at)
                allocator.append(i, more)
                held[i] = at + more
            elif what == ALLOCATE:
                at = min(-(-prompts[i] // size) * size, finals[i])
                allocator.allocate(i, at, finals[i])
                held[i] = at
            else:
                allocator.free(i)
        return _end(start, allocator, 0)


def tokens(trace: AllocatorTrace) -> dict[str, float]:
    """Grow by tokens, without a prefix cache."""
    prompts, finals = trace.prompt_tokens, [len(text) for text in trace.tokens]
    allocator = PagedAllocator(trace.num_blocks, trace.block_size)
    with no_collections():
        start = time.process_time()
        for what, i in trace.ops:
            if what == APPEND:
                allocator.append(i, 1)
            elif what == ALLOCATE:
                allocator.allocate(i, prompts[i], finals[i])
            else:
                allocator.free(i)
        return _end(start, allocator, 0)


def caching(trace: AllocatorTrace, *, hashing: bool = False) -> dict[str, float]:
    """Grow by tokens, with a prefix cache; the keys come from outside, unless `hashing`."""
    size, prompts, texts = trace.block_size, trace.prompt_tokens, trace.tokens
    finals = [len(text) for text in texts]
    allocator = PagedAllocator(trace.num_blocks, size, prefix_caching=True)
    keys: list[list[bytes]] = [[] for _ in texts]
    if not hashing:
        for mine, text in zip(keys, texts, strict=True):
            extend_keys(mine, _ROOT, text, len(text), size)
    held, hits = list(prompts), 0
    with no_collections():
        start = time.process_time()
        for what, i in trace.ops:
            if what == APPEND:
                allocator.append(i, 1)
                held[i] += 1
                if held[i] % size == 0:
                    if hashing:
                        extend_keys(keys[i], _ROOT, texts[i], held[i], size)
                    allocator.publish(i, keys[i][: held[i] // size])
            elif what == ALLOCATE:
                if hashing:
                    extend_keys(keys[i], _ROOT, texts[i], prompts[i], size)
                found = allocator.allocate(i, prompts[i], finals[i], keys[i])
                hits += 0 if found is None else found // size
                allocator.publish(i, keys[i][: prompts[i] // size])
            else:
                allocator.free(i)
        return _end(start, allocator, hits)


def _end(start: float, allocator: PagedAllocator, hits: int) -> dict[str, float]:
    seconds = time.process_time() - start
    allocator.check_integrity()
    if allocator.num_free_blocks != allocator.num_blocks:
        raise RuntimeError(f"{allocator.num_blocks - allocator.num_free_blocks} blocks were not given back")
    return {"seconds": seconds, "hits": hits}


OURS: dict[str, Callable[[AllocatorTrace], dict[str, float]]] = {
    "pool": pool, "blocks": blocks, "tokens": tokens, "caching": caching,
    "hashing": lambda trace: caching(trace, hashing=True),
}


@contextmanager
def vllm_worker(python: Path, trace: AllocatorTrace) -> Iterator[Callable[[str], dict[str, float]]]:
    """A function that runs a comparison on vLLM's side, in a process of its own. Raises UsageError without vLLM."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "trace.json", Path(folder) / "stderr"
        file.write_text(json.dumps(asdict(trace) | {"block_ops": trace.block_ops}))
        try:
            with log.open("wb") as stderr:
                process = subprocess.Popen([python, _VLLM_SIDE, file], stdin=subprocess.PIPE, text=True,
                                           stdout=subprocess.PIPE, stderr=stderr)
        except OSError as error:
            raise UsageError(f"--vllm-python {python} cannot be run: {error.strerror}") from None
        assert process.stdin is not None
        assert process.stdout is not None
        sent, came = process.stdin, process.stdout

        def ask(job: str) -> dict[str, float]:
            if job:
                sent.write(job + "\n")
                sent.flush()
            if not (line := came.readline()):
                raise UsageError(f"vLLM's side ended: {log.read_text()[-1500:]}")
            return json.loads(line) if job else {}

        try:
            ask("")  # it is ready
            yield ask
        finally:
            sent.close()
            came.close()
            process.terminate()
            process.wait()


def measure(trace: AllocatorTrace, vllm_python: Path | None, repeats: int) -> dict[str, dict[str, list[float]]]:
    """"ours pool", "vLLM pool" … -> "seconds" and "hits" of each repetition."""
    arms: dict[str, Callable[[], dict[str, float]]] = {}

    def both(ask: Callable[[str], dict[str, float]] | None) -> dict[str, dict[str, list[float]]]:
        for name in COMPARISONS:
            arms[f"ours {name}"] = lambda name=name: OURS[name](trace)  # type: ignore[misc]
            if ask is not None:
                arms[f"vLLM {name}"] = lambda name=name: ask(name)  # type: ignore[misc]
        return in_turns(arms, repeats)

    if vllm_python is None:
        return both(None)
    with vllm_worker(vllm_python, trace) as ask:
        return both(ask)


def show(trace: AllocatorTrace, found: dict[str, dict[str, list[float]]]) -> Table:
    """One row a comparison."""
    table = Table(title="nanoseconds a block: median (lowest–highest)", title_justify="left")
    for column in ("comparison", "this engine", "vLLM", "this / vLLM", "found in cache, this / vLLM"):
        table.add_column(column, justify="left" if column == "comparison" else "right")
    scale = 1e9 / trace.total_blocks
    for name in COMPARISONS:
        ours, theirs = found[f"ours {name}"], found.get(f"vLLM {name}")
        told = [Spread.of([s * scale for s in ours["seconds"]]).text()]
        hits = f"{ours['hits'][0]:,.0f}"
        if theirs is None:
            table.add_row(name, *told, "–", "–", hits)
            continue
        ratios = [a / b for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
        told += [Spread.of([s * scale for s in theirs["seconds"]]).text(), Spread.of(ratios).text(".2f")]
        table.add_row(name, *told, f"{hits} / {theirs['hits'][0]:,.0f}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="python -m reference_engine.benchmarks.allocator", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vllm-python", type=Path, help="Python of an environment with vLLM, such as .envs/vllm/bin/python")
    p.add_argument("--sequences", type=int, default=1000, help="sequences in all (default 1000)")
    p.add_argument("--running", type=int, default=256, help="sequences at once (default 256)")
    p.add_argument("--repeats", type=int, default=7, help="repetitions of each (default 7)")
    p.add_argument("--seed", type=int, default=0, help="of the lengths and tokens")
    args = p.parse_args(argv)
    out = output()
    try:
        if min(args.sequences, args.running, args.repeats) < 1:
            raise UsageError("--sequences, --running and --repeats must be at least 1")
        trace = draw_trace(args.sequences, args.running, args.seed)
        out.print(f"{machine_text()}\n{len(trace.tokens):,} sequences, {len(trace.ops):,} operations, "
                  f"{trace.total_blocks:,} blocks in all tables, pool of {trace.num_blocks:,} blocks of "
                  f"{trace.block_size}")
        out.print(show(trace, measure(trace, args.vllm_python, args.repeats)))
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
