"""How much of everything a run does: smoke, ci or full.

Sizes are asked of the profile, never of the clock, so that two runs of one profile ask the same of an engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pabench.errors import UsageError


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes of one profile. `request_timeout_s` bounds every request, `case_timeout_s` every case."""

    name: str
    block_multiples: tuple[int, ...]  # the k of prompts of kB-1, kB, kB+1 tokens
    rings: int                        # rings in a crowd
    concurrency: int                  # requests at once
    rounds: int                       # how often a client comes back, where that matters
    samples: int                      # n
    refusal_s: float                  # what cannot be served has to be refused within this
    settle_s: float                   # gauges have to show the truth within this
    pool_tokens: int                  # largest pool (slots) that a case tries to fill
    prompt_tokens: int                # longest prompt
    traces: int                       # of operations on a block manager, a requirement
    operations: int                   # in a trace, at most
    kernel_cases: int                 # of attention, writes, copies, merges with all options together, a requirement
    kernel_edges: int                 # with one option each, a case of a requirement
    shrink_s: float                   # a trace or kernel case that fails is made smaller for so long
    request_timeout_s: float
    case_timeout_s: float
    run_timeout_s: float              # the whole run is ended after this
    patience: float = 1.0             # by which all limits of time were multiplied

    def patient(self, factor: float) -> Profile:
        """As this one, with `factor` times the time for everything. Raises UsageError unless it is a number above 0."""
        if not 0 < factor < math.inf:
            raise UsageError(f"the patience is {factor:g}, expected a factor above 0, as 4 for four times the time")
        return replace(self, patience=self.patience * factor,
                       **{name: getattr(self, name) * factor for name in _LIMITS})


# Of time. What an engine has to do within them is the same.
_LIMITS = ("refusal_s", "settle_s", "request_timeout_s", "case_timeout_s", "run_timeout_s")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", (1, 2), rings=10, concurrency=6, rounds=4, samples=6, refusal_s=5, settle_s=3,
                pool_tokens=2048, prompt_tokens=512, traces=30, operations=40, kernel_cases=10, kernel_edges=2,
                shrink_s=3, request_timeout_s=20, case_timeout_s=40, run_timeout_s=300),
        Profile("ci", (1, 2, 3, 8), rings=32, concurrency=16, rounds=5, samples=8, refusal_s=10, settle_s=5,
                pool_tokens=8192, prompt_tokens=4096, traces=200, operations=60, kernel_cases=40, kernel_edges=3,
                shrink_s=10, request_timeout_s=60, case_timeout_s=180, run_timeout_s=1200),
        Profile("full", (1, 2, 3, 5, 8, 16, 31), rings=128, concurrency=64, rounds=8, samples=16, refusal_s=20,
                settle_s=10, pool_tokens=65536, prompt_tokens=32768, traces=3000, operations=100,
                kernel_cases=1000, kernel_edges=12, shrink_s=60, request_timeout_s=180, case_timeout_s=900,
                run_timeout_s=7200),
    )
}


def load_profile(name: str) -> Profile:
    """The profile called `name`. Raises UsageError that lists the known ones."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}: expected one of {', '.join(PROFILES)}")
    return PROFILES[name]
