"""A reference engine that is slower by a known amount, to see what a gate finds.

    python -m reference_engine.benchmarks.slowed --decode 1.05 --model DIR --port 8000 …

Each step takes `--decode` times as long as it took, one that computes a prompt `--prefill` times: the thread of the
engine waits that much longer before it hands the tokens on. All other options are the engine's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from pabench.errors import EXIT_COULD_NOT_RUN
from reference_engine import __main__ as command
from reference_engine.engine import Engine, StepOutput


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


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, slowed; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], add_help=False)
    parser.add_argument("--decode", type=float, default=1.0)
    parser.add_argument("--prefill", type=float, default=1.0)
    own, rest = parser.parse_known_args(argv)
    if min(own.decode, own.prefill) < 1:
        print(f"error: factors are 1 or more: got --decode {own.decode:g} --prefill {own.prefill:g}", file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    SlowedEngine.decode_factor, SlowedEngine.prefill_factor = own.decode, own.prefill
    vars(command)["Engine"] = SlowedEngine  # the command makes its engine by this name
    return command.main(rest)


if __name__ == "__main__":
    sys.exit(main())
