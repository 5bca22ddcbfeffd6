"""A reference engine that is slower by a known amount, to see what a gate finds.

    python -m reference_engine.benchmarks.slowed --decode 1.05 --model DIR --port 8000 …

    --decode F    each step takes F times as long as it took, one that computes a prompt excepted: TPOT
    --prefill F   each step that computes a prompt does: TTFT, and TPOT where others wait for it
    --first F     first tokens come after F times as long, what follows when it would have come: TTFT alone
    --end F       answers end F times as long after their arrival, all tokens when they would have come: throughput,
                  in a closed loop, and neither TTFT nor TPOT

The engine's thread waits for the steps, the answers for the rest. All other options are the engine's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pabench.errors import EXIT_COULD_NOT_RUN
from reference_engine import __main__ as entry
from reference_engine.engine import Engine, StepOutput
from reference_engine.scheduling.sequence import Request
from reference_engine.serving import command
from reference_engine.serving.async_engine import AsyncEngine

_FACTORS = ("decode", "prefill", "first", "end")
_WAITERS = ThreadPoolExecutor(64)  # the event loop's own timers round to a millisecond


class SlowedEngine(Engine):
    """See the module. Factors of 1 and more."""

    decode_factor = 1.0
    prefill_factor = 1.0

    def step(self) -> list[StepOutput]:
        """As the engine's, and as long again as the factor says."""
        start_s = time.perf_counter()
        outputs = super().step()
        prefilled = any(seq.num_computed <= seq.num_prompt_tokens for seq in self.scheduler.running)
        factor = self.prefill_factor if prefilled else self.decode_factor
        until_s = start_s + (time.perf_counter() - start_s) * factor
        while time.perf_counter() < until_s:
            time.sleep(max(0.0, until_s - time.perf_counter() - 1e-4))
        return outputs


class SlowedAnswers(AsyncEngine):
    """See the module. Factors of 1 and more."""

    first_factor = 1.0
    end_factor = 1.0

    async def generate(self, requests: list[Request]) -> AsyncGenerator[list[StepOutput], None]:
        """As the engine's, its first batch and its end later."""
        began_s = time.perf_counter()
        factor = self.first_factor
        async with contextlib.aclosing(super().generate(requests)) as batches:
            async for batch in batches:
                await _hold(began_s, factor)
                factor = 1.0
                yield batch
        await _hold(began_s, self.end_factor)


async def _hold(began_s: float, factor: float) -> None:
    """Until `factor` times as long has passed."""
    if factor > 1:
        more_s = (time.perf_counter() - began_s) * (factor - 1)
        await asyncio.get_running_loop().run_in_executor(_WAITERS, time.sleep, more_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, slowed; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], add_help=False, allow_abbrev=False)
    for name in _FACTORS:
        parser.add_argument(f"--{name}", type=float, default=1.0)
    own, rest = parser.parse_known_args(argv)
    if min(vars(own).values()) < 1:
        given = " ".join(f"--{name} {factor:g}" for name, factor in vars(own).items())
        print(f"error: factors are 1 or more: got {given}", file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    SlowedEngine.decode_factor, SlowedEngine.prefill_factor = own.decode, own.prefill
    SlowedAnswers.first_factor, SlowedAnswers.end_factor = own.first, own.end
    for name, slowed in {"Engine": SlowedEngine, "AsyncEngine": SlowedAnswers}.items():
        assert hasattr(command, name), f"{command.__name__} makes no {name}: nothing would be slowed"
        setattr(command, name, slowed)
    return entry.main(rest)


if __name__ == "__main__":
    sys.exit(main())
