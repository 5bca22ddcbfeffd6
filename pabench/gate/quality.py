"""How often the gate errs, measured: A/A runs of this machine, judged as they came and with slow-downs put in.

    python -m pabench.gate.quality record RUN_FOLDER NOISE.csv      # the figures of `pabench gate run`'s pairs
    python -m pabench.gate.quality [--policy FILE] table NOISE.csv … [--slowed SLOWED.csv …]

A simulated gate takes pairs of runs that followed each other in the record, from each one on and round, either side in
the baseline's place; a slow-down multiplies the candidate's figure. It decides look by look as the live one does. Gates
from one record overlap, so their number is no number of independent ones.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pabench.analysis.measures import higher_is_better
from pabench.analysis.sides import Measured, Samples, by_start, mean_of_start, read_runs
from pabench.errors import PabenchError, UsageError
from pabench.gate.decide import INCONCLUSIVE, PASS, REGRESSION, decide
from pabench.gate.policy import Policy, load_policy
from pabench.load.records import write_atomic

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
    seeds = [seed for seed in sorted(set(sides[0]) & set(sides[1]))
             if all(side[seed].summary.validity.valid for side in sides)]
    starts = zip(*(by_start([side[seed] for seed in seeds]) for side in sides), strict=True)
    rows = [_row_of(pair, (*policy.metrics, *policy.watch.metrics)) for pair in starts]
    if not rows:
        raise UsageError(f"{folder} holds no pair of valid runs")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out, text.getvalue().encode())
    return len(rows)


def _row_of(pair: Sequence[Sequence[Measured]], names: Sequence[str]) -> dict[str, object]:
    """A start of each side, with its runs: the means of their figures, each in its own unit."""
    first = [runs[0].manifest for runs in pair]
    figures = {f"{side}.{name}": mean_of_start(runs, name)
               for side, runs in zip(_SIDES, pair, strict=True) for name in names}
    return {"seed": first[0].seed, "started_at": first[0].started_at[:19],
            "first": _SIDES[int(first[0].started_at > first[1].started_at)],
            **{name: None if value is None else f"{value:.6g}" for name, value in figures.items()}}


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


def gate_once(
    noise: Noise, policy: Policy, worse: Mapping[str, float], start: int, *, swapped: bool = False
) -> tuple[str, int]:
    """One gate on the pairs from `start` on, and round: its outcome, and after how many pairs. `worse`: relative change
    put into a metric of the candidate; `swapped`: the sides change places.
    """
    outcome, look = INCONCLUSIVE, 0
    for look in policy.looks:
        taken = [(start + step) % noise.num_pairs for step in range(look)]
        samples = []
        for name, values in noise.figures.items():
            pairs = values[taken][:, ::-1] if swapped else values[taken]
            factor = _factor(name, worse.get(name, 0.0))
            samples.append(Samples("simulated", name, tuple(pairs[:, 0]), tuple(pairs[:, 1] * factor), paired=True))
        outcome = decide(samples, policy, num_looks=len(policy.looks)).outcome
        if outcome != INCONCLUSIVE:
            break
    return outcome, look


def everywhere(
    noise: Noise, policy: Policy, worse: Mapping[str, float], *, swap: bool = True
) -> tuple[Counter[str], float]:
    """Outcomes of the gates from each place of the record, and the mean number of pairs that they took. `swap`: with
    the sides in each other's place too, as they may be where both are one engine.
    """
    return _counted([gate_once(noise, policy, worse, start, swapped=swapped)
                     for start in range(noise.num_pairs) for swapped in ((False, True) if swap else (False,))])


def in_turn(noise: Noise, policy: Policy) -> tuple[Counter[str], float]:
    """Gates as they would have come, one after the other, each on pairs of its own; what is left over is left out."""
    found, start = [], 0
    while start + policy.looks[0] <= noise.num_pairs:
        outcome, pairs = gate_once(noise, policy, {}, start)
        if start + pairs > noise.num_pairs:  # it went round
            break
        found.append((outcome, pairs))
        start += pairs
    return _counted(found)


def _counted(found: Sequence[tuple[str, int]]) -> tuple[Counter[str], float]:
    return Counter(outcome for outcome, _ in found), float(np.mean([pairs for _, pairs in found])) if found else 0.0


def cases(policy: Policy) -> dict[str, dict[str, float]]:
    """What is put in: nothing, what matters in each metric alone, and in all."""
    found: dict[str, dict[str, float]] = {"nothing (A/A)": {}}
    for name, rule in policy.metrics.items():
        found[f"{name} worse by {rule.worse_by:.0%}"] = {name: rule.worse_by}
    found["all of them by as much"] = {name: rule.worse_by for name, rule in policy.metrics.items()}
    return found


def quality_table(alike: Sequence[Noise], slowed: Sequence[Noise], policy: Policy) -> str:
    """Markdown: for each record and case how many gates said what. `alike`: one engine on both sides, slow-downs
    are put in; `slowed`: the candidate really was slower.
    """
    lines = [f"| record | case | gates | {REGRESSION} | {PASS} | {INCONCLUSIVE} | pairs, mean |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for noise in (*alike, *slowed):
        spreads = ", ".join(f"{name.partition('_')[0]} {noise.spread(name):.1%}" for name in policy.metrics)
        lines.append(_row(f"{noise.name}: {noise.num_pairs} pairs, whose ratios spread by {spreads}",
                          "as measured, one after the other", in_turn(noise, policy)))
        real = noise in slowed
        tried = {"as measured, from anywhere in the record": {}} if real else cases(policy)
        lines += [_row("", case, everywhere(noise, policy, worse, swap=not real))
                  for case, worse in tried.items()]
    return "\n".join(lines) + "\n"


def _row(record: str, case: str, found: tuple[Counter[str], float]) -> str:
    outcomes, pairs = found
    counts = " | ".join(str(outcomes[outcome]) for outcome in (REGRESSION, PASS, INCONCLUSIVE))
    return f"| {record} | {case} | {outcomes.total()} | {counts} | {pairs:.1f} |"


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
    table.add_argument("--slowed", type=Path, nargs="*", default=[], help="records whose candidate was really slower")
    args = parser.parse_args(argv)
    policy = load_policy(args.policy)
    if args.what == "record":
        print(f"{record_noise(args.folder, policy, args.out)} pairs: {args.out}")
    else:
        alike, slowed = ([read_noise(path, policy) for path in paths] for paths in (args.noise, args.slowed))
        print(quality_table(alike, slowed, policy), end="")


if __name__ == "__main__":
    try:
        main()
    except PabenchError as error:
        sys.exit(f"error: {error}")
