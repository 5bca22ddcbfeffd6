"""What the simulated rows share: a saturated pool of OPT-13B's size under a virtual clock, over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pabench.claims import Bench, Shown
from reference_engine.benchmarks.timing import Spread
from reference_engine.config import EngineConfig
from reference_engine.simulation import Outcome, Simulator, StepLaw, synthetic

# Lengths: ShareGPT mean 161 in, 338 out; Alpaca 19 in, 58 out (Fig. 11). No quantiles are published; Fig. 2 pins the
# output's second moment near that of an exponential law (notes:second_moment).
LENGTHS = {"ShareGPT": ("gamma:0.25,161.31", "exp:337.99"), "Alpaca": ("gamma:1,19.31", "exp:58.45")}
SLOTS = 15_728
ONE_STEP = StepLaw(1.0, 0.0, 0.0, 0.0, 0.0)
MAX_LEN = 2048
SEEDS = 5
NEVER_WAITED = Shown("–", None, "the queue never waited: raise --scale")


def seeded(bench: Bench) -> Iterator[Bench]:
    """The bench with its own seed and the next ones: a verdict that rests on which lengths were drawn is none."""
    return (replace(bench, seed=bench.seed + more) for more in range(SEEDS))


def spread(bench: Bench, figure: Callable[[Bench], float]) -> Spread:
    """One figure over the seeds."""
    return Spread.of([figure(one) for one in seeded(bench)])


def seeds_inside(inside: Sequence[bool]) -> str:
    """How many of the seeds are inside what was published, for a row's `why`."""
    return f"median and range of {len(inside)} seeds, {sum(inside)} of them inside"


def simulated(
    bench: Bench, lengths: str, kv: str, reservation: str = "max", *, law: StepLaw = ONE_STEP, block_size: int = 16,
    requests: int = 6000, batching: str = "continuous", slots: int = SLOTS,
) -> Outcome:
    """A saturated queue of `requests` in a pool of `slots`; the same question is asked once."""
    key = repr((bench.seed, lengths, kv, reservation, law, block_size, requests, batching, slots))
    if key not in bench.memory:
        size = block_size if kv == "paged" else 1
        config = EngineConfig(
            max_model_len=MAX_LEN, kv=kv, reservation=reservation, block_size=size, num_blocks=slots // size,
            max_num_seqs=1024, max_num_batched_tokens=8192, batching=batching, prefix_caching=False)
        load = synthetic(*LENGTHS[lengths], bench.count(requests), MAX_LEN, seed=bench.seed)
        bench.memory[key] = run(Simulator(config, load, law))
    found = bench.memory[key]
    assert isinstance(found, Outcome), "nothing else is kept under this key"
    return found


def run(simulator: Simulator) -> Outcome:
    """To its end."""
    while simulator.advance():
        pass
    return simulator.outcome(0.0, interrupted=False)


def waiting_means(
    bench: Bench, lengths: str, kv: str, reservation: str = "max", requests: int = 6000,
) -> list[dict[str, float]] | None:
    """Means while requests wait, seed by seed; None where the queue of one of them never waited."""
    found = [simulated(one, lengths, kv, reservation, requests=requests).tally.means(only_waiting=True)
             for one in seeded(bench)]
    means = [one for one in found if one is not None]
    return means if len(means) == len(found) else None


def rate(outcome: Outcome) -> float:
    """Tokens a virtual second."""
    return outcome.generated_tokens / outcome.virtual_s
