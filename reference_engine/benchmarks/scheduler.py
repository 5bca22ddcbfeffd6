"""What a step costs beside the model: Scheduler.schedule and complete, with the paged allocator and no model.

steady  all sequences decode from the first step to the last. They need their next block all in the same step, one step
        in 16: the worst steps are those
churn   in each step one sequence in 64 (at least one in every four steps) ends and another comes, with a prompt of
        128 tokens, half of it found where prefixes are cached; ending and adding are part of the step
The tokens that the model would have made are appended between the steps, outside the time, which is CPU time. As in the
server, what is there at the start is kept out of garbage collection, which is on.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence as SequenceOf

import numpy as np
from rich.table import Table

from pabench.errors import EXIT_INTERRUPTED, EXIT_OK, PabenchError, UsageError
from reference_engine.benchmarks.timing import in_turns, machine_text, output
from reference_engine.config import EngineConfig
from reference_engine.memory.paged import PagedAllocator
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Request, SamplingParams, Sequence

PROMPT, SHARED = 128, 64
RUNNING = (16, 64, 256)


class Steps:
    """A scheduler that has `num_running` sequences decoding, and the time of its steps."""

    def __init__(self, num_running: int, num_steps: int, *, prefix_caching: bool) -> None:
        self.num_running, self.num_steps = num_running, num_steps
        final = PROMPT + num_steps + 1
        num_blocks = num_running * (-(-final // 16) + 1)
        config = EngineConfig(max_model_len=final + 1, num_blocks=num_blocks, max_num_seqs=num_running,
                              max_num_batched_tokens=max(4096, PROMPT * num_running), prefix_caching=prefix_caching)
        allocator = PagedAllocator(num_blocks, config.block_size, prefix_caching=prefix_caching)
        self.scheduler = Scheduler(config, allocator)
        self.rng = np.random.default_rng(0)
        self.shared = self.rng.integers(0, 32_000, SHARED).tolist()
        for _ in range(num_running):
            self.scheduler.add(self._request())
        self._step()  # all prompts

    def _request(self) -> Request:
        prompt = tuple(self.shared + self.rng.integers(0, 32_000, PROMPT - SHARED).tolist())
        request = Request(prompt, SamplingParams(max_tokens=self.num_steps + 1), seed=0, arrival_s=0.0)
        request.sequences.append(Sequence(request, 0, list(prompt), seed=0))
        return request

    def _step(self) -> float:
        """One step; its seconds."""
        start = time.process_time()
        step = self.scheduler.schedule()
        self.scheduler.complete(step)
        seconds = time.process_time() - start
        if len(step.sequences) != self.num_running:
            raise RuntimeError(f"{len(step.sequences)} sequences ran, expected {self.num_running}")
        for seq in step.sequences:
            seq.append(int(seq.num_tokens) % 32_000)
        return seconds

    def run(self, *, churn: bool) -> dict[str, float]:
        """Microseconds a step: mean, median, 99th percentile, worst."""
        gc.collect()
        gc.freeze()
        each = max(self.num_running // 64, 1)
        every = 1 if self.num_running >= 64 else 4
        taken = []
        for number in range(self.num_steps):
            if churn and number % every == 0:
                coming = [self._request() for _ in range(each)]
                start = time.process_time()
                for seq in self.scheduler.running[:each]:  # the oldest
                    self.scheduler.finish(seq)
                for request in coming:
                    self.scheduler.add(request)
                taken.append(time.process_time() - start + self._step())
            else:
                taken.append(self._step())
        gc.unfreeze()
        micros = np.array(taken) * 1e6
        return {"mean": float(micros.mean()), "p50": float(np.median(micros)),
                "p99": float(np.quantile(micros, 0.99)), "worst": float(micros.max())}


def measure(running: SequenceOf[int], num_steps: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """"256 running, churn, prefix cache" … -> figure -> its value in each repetition."""
    arms = {}
    for count in running:
        for churn in (False, True):
            for caching in (False, True):
                name = f"{count} running, {'churn' if churn else 'steady'}{', prefix cache' if caching else ''}"
                arms[name] = lambda count=count, churn=churn, caching=caching: Steps(
                    count, num_steps, prefix_caching=caching).run(churn=churn)
    return in_turns(arms, repeats)


def main(argv: SequenceOf[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="python -m reference_engine.benchmarks.scheduler", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=500, help="steps a repetition (default 500)")
    p.add_argument("--repeats", type=int, default=5, help="repetitions (default 5)")
    args = p.parse_args(argv)
    out = output()
    try:
        if min(args.steps, args.repeats) < 1:
            raise UsageError("--steps and --repeats must be at least 1")
        out.print(machine_text())
        table = Table(title=f"microseconds a step, median of {args.repeats} repetitions", title_justify="left")
        for column in ("", "mean", "p50", "p99", "worst"):
            table.add_column(column, justify="right" if column else "left")
        for name, figures in measure(RUNNING, args.steps, args.repeats).items():
            table.add_row(name, *(f"{np.median(values):,.0f}" for values in figures.values()))
        out.print(table)
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
