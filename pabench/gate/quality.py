"""How often the gate errs, measured: A/A runs of this machine, judged as they came and with slow-downs put in.

    python -m pabench.gate.quality record RUN_FOLDER NOISE.csv      # the figures of `pabench gate run`'s pairs
    python -m pabench.gate.quality table NOISE.csv … [--policy FILE] [--gates 200]

A simulated gate takes pairs of runs that followed each other in the record, from a random one on, either side in the
baseline's place; a slow-down multiplies the candidate's figure. It decides look by look as the live one does.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pabench.analysis.measures import higher_is_better, measure
from pabench.analysis.sides import Samples, read_runs
from pabench.errors import PabenchError, UsageError
from pabench.gate.decide import INCONCLUSIVE, PASS, REGRESSION, decide
from pabench.gate.policy import Policy, load_policy

_SIDES = ("baseline", "candidate")


@dataclass(frozen=True, slots=True)
class Noise:
    """The figures of A/A pairs in the order of time: metric -> [num_pairs, 2], baseline and candidate."""

    name: str
    figures: Mapping[str, np.ndarray]

    @property
    def num_pairs(self) -> int:
        """How many."""
        return min(len(values) for values in self.figures.values())

    def spread(self, metric: str) -> float:
        """Standard deviation of a pair's ratio, relative."""
        pairs = np.log(self.figures[metric])
        return float(np.std(pairs[:, 1] - pairs[:, 0], ddof=1))


def record_noise(folder: Path, policy: Policy, out: Path) -> int:
    """Write the pairs of a gate's run folder as CSV, one row a pair; returns how many."""
    sides = [{run.manifest.seed: run for run in read_runs(folder / side)} for side in _SIDES]
    names = (*policy.metrics, *policy.watch.metrics)
    rows = []
    for seed in sorted(set(sides[0]) & set(sides[1])):
        pair = [side[seed] for side in sides]
        if all(run.summary.validity.valid for run in pair):
            figures = {f"{side}.{name}": measure(run.summary, name)
                       for side, run in zip(_SIDES, pair, strict=True) for name in names}
            rows.append({"seed": seed, "started_at": pair[0].manifest.started_at[:19],
                         "first": _SIDES[int(pair[0].manifest.started_at > pair[1].manifest.started_at)],
                         **{name: None if value is None else f"{value:.6g}" for name, value in figures.items()}})
    if not rows:
        raise UsageError(f"{folder} holds no pair of valid runs")
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def read_noise(path: Path, policy: Policy) -> Noise:
    """A CSV that `record_noise` wrote. Raises UsageError when it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        figures = {name: np.asarray([[float(row[f"{side}.{name}"]) for side in _SIDES] for row in rows])
                   for name in policy.metrics}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as recorded noise: {error}") from None
    if len(rows) < policy.looks[-1]:
        raise UsageError(f"{path} holds {len(rows)} pairs, the policy asks for up to {policy.looks[-1]}")
    return Noise(path.stem, figures)


def gate_once(noise: Noise, policy: Policy, worse: Mapping[str, float], rng: np.random.Generator) -> tuple[str, int]:
    """One simulated gate: its outcome, and after how many pairs. `worse`: relative change put into a metric."""
    start = int(rng.integers(0, noise.num_pairs))
    order = [0, 1] if rng.integers(2) else [1, 0]
    outcome, look = INCONCLUSIVE, 0
    for look in policy.looks:
        taken = [(start + step) % noise.num_pairs for step in range(look)]
        samples = []
        for name, values in noise.figures.items():
            pairs = values[taken][:, order]
            factor = _factor(name, worse.get(name, 0.0))
            samples.append(Samples("simulated", name, tuple(pairs[:, 0]), tuple(pairs[:, 1] * factor), paired=True))
        outcome = decide(samples, policy, num_looks=len(policy.looks)).outcome
        if outcome != INCONCLUSIVE:
            break
    return outcome, look


def gates(
    noise: Noise, policy: Policy, worse: Mapping[str, float], num_gates: int, seed: int = 0
) -> tuple[Counter[str], float]:
    """Outcomes of `num_gates` simulated gates, and the mean number of pairs that they took."""
    rng = np.random.default_rng(seed)
    found = [gate_once(noise, policy, worse, rng) for _ in range(num_gates)]
    return Counter(outcome for outcome, _ in found), float(np.mean([pairs for _, pairs in found]))


def cases(policy: Policy) -> dict[str, dict[str, float]]:
    """What is put in: nothing, half of what matters and all of it in each metric alone, and all in every one."""
    found: dict[str, dict[str, float]] = {"nothing (A/A)": {}}
    for name, rule in policy.metrics.items():
        found[f"{name} worse by {rule.worse_by:.0%}"] = {name: rule.worse_by}
        found[f"{name} worse by {2 * rule.worse_by:.0%}"] = {name: 2 * rule.worse_by}
    found["all of them by as much"] = {name: rule.worse_by for name, rule in policy.metrics.items()}
    return found


def quality_table(noises: Sequence[Noise], policy: Policy, num_gates: int) -> str:
    """Markdown: for each record and case how many gates said what, of `num_gates`."""
    lines = [f"| record | spread of a pair's ratio | put in | {REGRESSION} | {PASS} | {INCONCLUSIVE} | pairs, mean |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for noise in noises:
        spreads = ", ".join(f"{name.partition('_')[0]} {noise.spread(name):.1%}"
                            for name in policy.metrics)
        for name, worse in cases(policy).items():
            outcomes, pairs = gates(noise, policy, worse, num_gates)
            counts = " | ".join(f"{outcomes[outcome]}" for outcome in (REGRESSION, PASS, INCONCLUSIVE))
            lines.append(f"| {noise.name} ({noise.num_pairs} pairs) | {spreads} | {name} | {counts} | {pairs:.1f} |")
    return "\n".join(lines) + "\n"


def _factor(name: str, worse: float) -> float:
    """What to multiply a figure by: a rate that is worse by 5 % is 95 % of itself."""
    return 1 - worse if higher_is_better(name) else 1 + worse


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", type=Path)
    commands = parser.add_subparsers(dest="what", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("out", type=Path)
    table = commands.add_parser("table")
    table.add_argument("noise", type=Path, nargs="+")
    table.add_argument("--gates", type=int, default=200)
    args = parser.parse_args(argv)
    policy = load_policy(args.policy)
    if args.what == "record":
        print(f"{record_noise(args.folder, policy, args.out)} pairs: {args.out}")
    else:
        print(quality_table([read_noise(path, policy) for path in args.noise], policy, args.gates), end="")


if __name__ == "__main__":
    try:
        main()
    except PabenchError as error:
        sys.exit(f"error: {error}")
