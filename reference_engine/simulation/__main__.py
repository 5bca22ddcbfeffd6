"""`python -m reference_engine.simulation --trace FILE …`: simulate a workload, print what came of it."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pabench.errors import EXIT_INTERRUPTED, EXIT_OK, PabenchError, UsageError
from pabench.traces import FORMATS, read_trace
from reference_engine.config import CHOICES, EngineConfig
from reference_engine.simulation.law import StepLaw
from reference_engine.simulation.outcome import Outcome
from reference_engine.simulation.simulator import Simulator
from reference_engine.simulation.table import outcome_table
from reference_engine.simulation.workload import Workload, from_trace, synthetic

SYNTHETIC_MODEL_LEN = 2048


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="pabench simulate", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="The reference engine's scheduler and KV allocators under a virtual clock, with no model.",
        epilog="Example: pabench simulate --trace AzureLLMInferenceTrace_conv.csv --kv paged --num-slots 62912",
    )
    work = p.add_argument_group("workload")
    source = work.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="request trace; see --format")
    source.add_argument("--synthetic", nargs=2, metavar=("PROMPT", "OUTPUT"),
                        help="lengths drawn from gamma:SHAPE,MEAN, exp:MEAN or fixed:N")
    work.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="of the trace")
    work.add_argument("--limit", type=int, metavar="N", help="only the first N requests; --synthetic: how many")
    work.add_argument("--rate-scale", type=float, default=1.0, help="how many times as fast the trace arrives")
    work.add_argument("--rate", type=float, help="requests a second of --synthetic (Poisson); default: all at once")
    work.add_argument("--saturated", action="store_true", help="all requests are there from the start")
    work.add_argument("--seed", type=int, default=0, help="of --synthetic")
    engine = p.add_argument_group("engine")
    engine.add_argument("--kv", choices=CHOICES["kv"], default="paged", help="how sequences get KV memory")
    engine.add_argument("--reservation", choices=CHOICES["reservation"], default="max", help="of --kv contiguous")
    engine.add_argument("--block-size", type=int, default=16, help="slots (tokens) in a block")
    pool = engine.add_mutually_exclusive_group()
    pool.add_argument("--num-blocks", type=int, default=2048, help="blocks in the KV cache")
    pool.add_argument("--num-slots", type=int, help="the same in slots")
    engine.add_argument("--max-num-seqs", type=int, default=256, help="sequences that run at once")
    engine.add_argument("--max-model-len", type=int, help="longest prompt plus output; default: the longest in the "
                        f"trace, for --synthetic {SYNTHETIC_MODEL_LEN}")
    engine.add_argument("--max-num-batched-tokens", type=int, default=2048, help="tokens in one step")
    engine.add_argument("--enable-chunked-prefill", dest="chunked_prefill", default=True,
                        action=argparse.BooleanOptionalAction,
                        help="prompts in pieces beside decodes")
    engine.add_argument("--batching", choices=CHOICES["batching"], default="continuous", help="when to let requests in")
    engine.add_argument("--preemption-mode", dest="preemption", choices=CHOICES["preemption"], default="recompute",
                        help="what happens to a sequence when blocks run out")
    engine.add_argument("--num-swap-blocks", type=int, default=2048, help="host blocks of --preemption-mode swap")
    engine.add_argument("--enable-prefix-caching", dest="prefix_caching", default=False,
                        action=argparse.BooleanOptionalAction,
                        help="share blocks of prompts; without hashes in the trace no two prompts share any")
    engine.add_argument("--step-law", default=str(StepLaw()), metavar="TERM=S,…",
                        help="seconds of a step; terms not named take none")
    out = p.add_argument_group("output")
    out.add_argument("--out", type=Path, metavar="FILE", help="new JSON file for the outcome")
    out.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    out.add_argument("--quiet", "-q", action="store_true", help="no progress")
    return p


def build(args: argparse.Namespace) -> Simulator:
    """Read the workload and check everything. Raises UsageError before any work starts."""
    law = StepLaw.parse(args.step_law)
    if args.out is not None and (args.out.exists() or not args.out.parent.is_dir()):
        trouble = "exists already" if args.out.exists() else "is in no folder that exists"
        raise UsageError(f"--out {args.out} {trouble}: give a new file in a folder that is there")
    num_blocks = args.num_blocks
    if args.num_slots is not None:
        if args.block_size < 1 or args.num_slots % args.block_size:
            raise UsageError(f"--num-slots is {args.num_slots}, expected a multiple of --block-size {args.block_size}")
        num_blocks = args.num_slots // args.block_size
    workload, longest = read_workload(args)
    config = EngineConfig(
        max_model_len=longest if args.max_model_len is None else args.max_model_len, kv=args.kv,
        reservation=args.reservation, block_size=args.block_size, num_blocks=num_blocks,
        max_num_seqs=args.max_num_seqs, max_num_batched_tokens=args.max_num_batched_tokens,
        chunked_prefill=args.chunked_prefill, batching=args.batching, preemption=args.preemption,
        num_swap_blocks=args.num_swap_blocks, prefix_caching=args.prefix_caching,
    )
    return Simulator(config, workload, law)


def check_workload(args: argparse.Namespace) -> None:
    """Raise UsageError for options that contradict each other, or that nothing would heed."""
    if args.synthetic:
        if args.limit is None:
            raise UsageError("--synthetic needs --limit: how many requests")
        if args.format != "auto":
            raise UsageError("--format is of --trace: --synthetic reads no file")
        if args.rate_scale != 1:
            raise UsageError("--rate-scale is of --trace: give --synthetic its --rate")
    else:
        if args.rate is not None:
            raise UsageError("--rate is of --synthetic: a trace has its own arrivals, --rate-scale makes them faster")
        if args.seed != 0:
            raise UsageError("--seed is of --synthetic: nothing of a trace is drawn")
    name, speed = ("--rate", args.rate is not None) if args.synthetic else ("--rate-scale", args.rate_scale != 1)
    if args.saturated and speed:
        raise UsageError(f"--saturated and {name} contradict each other: give one")


def read_workload(args: argparse.Namespace) -> tuple[Workload, int]:
    """The requests, and the default of max_model_len."""
    check_workload(args)
    if args.synthetic:
        longest = SYNTHETIC_MODEL_LEN if args.max_model_len is None else args.max_model_len
        prompt, output = args.synthetic
        return synthetic(prompt, output, args.limit, longest, seed=args.seed, rate=args.rate), longest
    trace = read_trace(args.trace, args.format)
    workload = from_trace(trace, rate_scale=args.rate_scale, saturated=args.saturated, limit=args.limit)
    return workload, int((workload.prompt_tokens + workload.output_tokens).max())


def simulate(simulator: Simulator, *, quiet: bool) -> Outcome:
    """Run to the end, or until SIGINT or SIGTERM."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    bar = Progress(TextColumn("simulating"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("virtual {task.fields[virtual]}"), console=Console(stderr=True), transient=True,
                   disable=quiet or not sys.stderr.isatty(), auto_refresh=False)
    gc.collect()
    gc.freeze()  # torch is large, and each collection would walk through all of it
    start = shown = time.perf_counter()
    going = True
    try:
        with bar:
            task = bar.add_task("", total=len(simulator.workload), virtual="0 s")
            while going and not stopped:
                going = simulator.advance()
                if time.perf_counter() - shown > 0.2:
                    shown = time.perf_counter()
                    bar.update(task, completed=simulator.num_done, virtual=f"{simulator.now:,.0f} s", refresh=True)
    finally:
        gc.unfreeze()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return simulator.outcome(time.perf_counter() - start, interrupted=going)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        simulator = build(args)
        outcome = simulate(simulator, quiet=args.quiet)
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while reading the trace
        return EXIT_INTERRUPTED
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    report = orjson.dumps({"options": given, **outcome.to_json()}, option=orjson.OPT_INDENT_2)
    if args.out is not None:
        try:
            args.out.write_bytes(report)
        except OSError as error:
            print(f"error: cannot write {args.out}: {error.strerror}", file=sys.stderr)
            return UsageError.exit_code
    if args.json:
        print(report.decode())
    else:
        console = Console(highlight=False, emoji=False)
        for part in outcome_table(outcome, simulator.config):
            console.print(part)
    return EXIT_INTERRUPTED if outcome.interrupted else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
