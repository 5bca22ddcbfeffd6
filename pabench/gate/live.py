"""`pabench gate run`: two engines by turns, until the gate can decide or its budget ends.

    OUT/
      baseline/conformance/  candidate/conformance/     verdicts, when a profile was asked
      baseline/000-SEED/     candidate/000-SEED/        one run folder a turn; both of a pair have one seed
      baseline/000/00-SEED/  candidate/000/00-SEED/     the same, of several turns a start
      baseline/000-engine.log                           what a launched engine wrote
      set-aside/                                        turns with an INVALID run, which are not judged
      gate.json  gate.md  junit.xml

The order is ABBA: what drifts evenly over a pair of pairs meets both sides alike. An engine that is launched is
started anew for each pair, so that differences between two starts of one engine are part of the noise and not of the
verdict. A pair is one run of each side, started one after the other, so that no run finds the cache of the one before;
or, with `turns`, so many of each by turns while both are up, and their mean is the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from urllib.parse import urlsplit

from pabench.analysis import finish_run
from pabench.analysis.measures import measure
from pabench.analysis.runs import SET_ASIDE
from pabench.analysis.sides import Measured, refuse_unlike, samples_of
from pabench.conformance.runner import run_suite
from pabench.engines import EngineProcess
from pabench.engines.address import DEFAULT_URL, parse_launch
from pabench.engines.doctor import Examination, examine
from pabench.errors import EXIT_INTERRUPTED, EXIT_NOT_CONFORMING, EXIT_OK, EngineError, PabenchError, UsageError
from pabench.gate.decide import INCONCLUSIVE, OPEN, REGRESSION, Decision, decide
from pabench.gate.evidence import more_lost, new_conformance_failures, sure_failures, zeroed
from pabench.gate.policy import Policy
from pabench.load import Workload, run_loop, run_workload

BASELINE, CANDIDATE = "baseline", "candidate"


@dataclass(frozen=True, slots=True)
class Reached:
    """An engine that is up: its URL, what it is, and when it was started (UTC, ISO 8601), with the other side."""

    url: str
    examination: Examination
    started_at: str
_MAX_INVALID = 0.5  # INVALID runs, of the pairs that are judged first; two in any case


@dataclass(frozen=True, slots=True)
class Side:
    """One engine: where it listens, or the command that starts it, {port} standing for its port."""

    name: str                        # BASELINE or CANDIDATE
    where: str
    dialect: str | None = None
    probe: str | None = None
    api_key: str | None = None
    ready_timeout_s: float = 600.0
    key_name: str | None = None      # the variable that holds the key, for an error

    def __post_init__(self) -> None:
        if not self.is_url:
            self._command()

    @property
    def is_url(self) -> bool:
        """Whether it runs already."""
        try:
            return urlsplit(self.where).scheme in ("http", "https") and " " not in self.where
        except ValueError as error:
            raise UsageError(f"--{self.name} is {self.where!r}, which is no URL: {error}") from None

    def process(self, log: Path) -> EngineProcess | None:
        """What is to be started; None where it runs already."""
        if self.is_url:
            return None
        return EngineProcess(self._command(), url=DEFAULT_URL, log=log, ready_timeout_s=self.ready_timeout_s)

    def _command(self) -> list[str]:
        return parse_launch(self.where, None, f"--{self.name}")


@dataclass(slots=True)
class GateRun:
    """A gate at work. `tell` is called with each thing that happened, in words; `quiet`: no output of the suite's."""

    sides: tuple[Side, Side]
    workload: Workload
    policy: Policy
    out: Path
    seed: int = 0
    profile: str = "none"
    turns: int = 1  # runs of each side in a pair; from two on both engines are up at once
    tell: Callable[[str], None] = lambda text: None
    quiet: bool = False
    runs: tuple[list[Measured], list[Measured]] = field(default_factory=lambda: ([], []))  # those that are judged
    measured: tuple[list[Measured], list[Measured]] = field(default_factory=lambda: ([], []))  # and those set aside
    set_aside: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # of conformance
    _num_pairs: int = 0  # that are judged
    _examined: dict[str, Examination] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise UsageError(f"--turns is {self.turns}, expected 1 or more: runs of each side in a pair")

    def examine_urls(self) -> None:
        """What is there already, before anything is measured. Raises EngineError that names the side."""
        for side in self.sides:
            if side.is_url:
                with _of(side):
                    self._examine(side, side.where)

    def run(self) -> Decision:
        """Measure and judge, look by look. Raises EngineError and UsageError when it cannot go on."""
        for side in self.sides:
            (self.out / side.name).mkdir(parents=True, exist_ok=True)
        failures = self._conform()
        if failures:
            return Decision(REGRESSION, failures=tuple(failures))
        pair, decision = 0, Decision(INCONCLUSIVE)
        for look in self.policy.looks:
            while self._num_pairs < look:
                failures = self._pair(pair)
                if failures:
                    return Decision(REGRESSION, failures=tuple(failures), notes=self._notes())
                pair += 1
            decision = self._judge()
            self.tell(f"after {look} pairs: {decision.outcome}")
            if decision.outcome != INCONCLUSIVE or self._no_run_tells(decision):
                break
        return decision

    def _no_run_tells(self, decision: Decision) -> bool:
        """Whether all that is in doubt is what the conformance suite left open."""
        return all(each.outcome != OPEN for each in decision.metrics) and decision.doubts == tuple(self.doubts)

    def _judge(self) -> Decision:
        refuse_unlike(*self.runs)
        (lost, few), (gone, some) = self._losses(), zeroed(*self.runs, self.policy)
        try:
            samples = samples_of(*self.runs, tuple(self.policy.metrics), self.policy.watch.metrics)
        except UsageError:
            if not (lost or gone):
                raise
            samples = []  # they fail it, whatever the figures
        return decide(samples, self.policy, num_looks=len(self.policy.looks), failures=[*lost, *gone],
                      doubts=[*self.doubts, *few, *some], notes=self._notes())

    def _losses(self) -> tuple[list[str], list[str]]:
        """What the candidate lost more: in all pairs, for a run that lost everything is INVALID and set aside."""
        return more_lost(*self.measured, self.policy.false_alarm / len(self.policy.looks))

    def _pair(self, number: int) -> list[str]:
        """The turns of one start of each side; what of them fails the gate for sure."""
        judged = len(self.runs[0])
        with ExitStack() as both:
            up = self._start(both, self.sides, number) if self.turns > 1 else None
            for turn in range(self.turns):
                failures = self._turn(number, turn, up)
                if failures:
                    return failures
        if len(self.runs[0]) > judged:
            self._num_pairs += 1
            self.tell(f"pair {self._num_pairs}: " + ", ".join(self._step(name, judged) for name in self.policy.metrics))
        return []

    def _turn(self, number: int, turn: int, up: list[Reached] | None) -> list[str]:
        """One run of each side; what of it fails the gate for sure. Both are set aside where one is INVALID."""
        order = (0, 1) if (number * self.turns + turn) % 2 == 0 else (1, 0)
        found = {at: self._measure(self.sides[at], number, turn, None if up is None else up[at]) for at in order}
        invalid = [f"{run.summary.path}: {'; '.join(run.summary.validity.reasons)}"
                   for run in found.values() if not run.summary.validity.valid]
        for at, run in found.items():
            self.measured[at].append(run)
        failures = sure_failures([found[1]]) or (self._losses()[0] if invalid else [])
        if failures:
            return failures
        if invalid:
            self._set_aside(invalid, [run.summary.path for run in found.values()])
            return []
        for at, run in found.items():
            self.runs[at].append(run)
        return []

    def _step(self, name: str, since: int) -> str:
        """A figure of both sides, the mean of the runs from the one of number `since` on."""
        known = [[value for run in side[since:] if (value := measure(run.summary, name)) is not None]
                 for side in self.runs]
        return f"{name} {' → '.join(f'{fmean(values):.4g}' if values else '–' for values in known)}"

    def _measure(self, side: Side, number: int, turn: int, reached: Reached | None) -> Measured:
        """A run of an engine that is up, or else is started for it."""
        seed = self.seed + number * self.turns + turn
        name = f"{number:03}-{seed}" if self.turns == 1 else f"{number:03}/{turn:02}-{seed}"
        folder = self.out / side.name / name
        with ExitStack() as alone:
            at = reached or self._start(alone, [side], number)[0]
            with _of(side):
                run_loop(run_workload(at.examination, self.workload, folder, url=at.url, label=side.name, seed=seed,
                                      api_key=side.api_key,
                                      engine_started_at=None if reached is None else at.started_at))
        run, summary = finish_run(folder)
        return Measured(summary, run.manifest)

    def _start(self, stack: ExitStack, sides: Sequence[Side], number: int) -> list[Reached]:
        """These sides, up as long as `stack` is. They start together: one that had a head start was slower, by 3.5 % in
        the mean of twelve starts of the reference engine.
        """
        started_at = datetime.now(UTC).isoformat()
        processes = [side.process(self.out / side.name / f"{number:03}-engine.log") for side in sides]
        for launched in filter(None, processes):
            stack.callback(launched.stop)
            launched.launch()
        reached = []
        for side, process in zip(sides, processes, strict=True):
            with _of(side):
                url = side.where if process is None else stack.enter_context(process).url
                reached.append(Reached(url, self._examine(side, url), started_at))
        return reached

    def _examine(self, side: Side, url: str) -> Examination:
        """What it is: asked of each process anew, so that all are asked alike before their load."""
        if side.name not in self._examined:
            found = run_loop(examine(url, dialect=side.dialect, probe=side.probe, api_key=side.api_key,
                                     key_name=side.key_name, timeout_s=self.workload.timeout_s))
            if not side.is_url:
                return found
            self._examined[side.name] = found
        return self._examined[side.name]

    def _set_aside(self, invalid: list[str], pair: list[Path]) -> None:
        """Move the pair where no one takes it for evidence; give up when there are too many."""
        for folder in pair:
            aside = self.out / SET_ASIDE / folder.relative_to(self.out)
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(aside)
        self.set_aside += invalid
        self.tell(f"set aside: INVALID {'; '.join(invalid)}")
        if len(self.set_aside) > max(2, _MAX_INVALID * self.policy.looks[0]) + len(self.runs[0]) // 4:
            raise PabenchError(f"{len(self.set_aside)} runs are INVALID, and a gate judges valid ones: {invalid[0]}")

    def _conform(self) -> list[str]:
        """New failures of the conformance suite, when it is to be asked."""
        if self.profile == "none":
            return []
        for side in self.sides:
            self.tell(f"{side.name}: conformance, profile {self.profile}")
            url, launch = (side.where, None) if side.is_url else (None, side.where)
            code = run_suite(url, launch=launch, ready_timeout_s=side.ready_timeout_s, profile=self.profile,
                             out=self.out / side.name / "conformance", dialect=side.dialect, probe=side.probe,
                             seed=self.seed, api_key=side.api_key, quiet=self.quiet)
            if code == EXIT_INTERRUPTED:
                raise KeyboardInterrupt
            if code not in (EXIT_OK, EXIT_NOT_CONFORMING):
                raise PabenchError(f"{side.name}: its conformance could not be decided (exit code {code})")
        failures, self.doubts = new_conformance_failures(self.out / BASELINE, self.out / CANDIDATE)
        return failures

    def _notes(self) -> tuple[str, ...]:
        stayed = [side.name for side in self.sides if side.is_url]
        unseen = [f"{' and '.join(stayed)} stayed up: how two starts of one engine differ, which may be some per cent, "
                  "is in no interval; give commands in place of URLs to have it seen"] if stayed else []
        return (*unseen, *(f"set aside, INVALID: {text}" for text in self.set_aside))


@contextmanager
def _of(side: Side) -> Iterator[None]:
    """What an engine does wrong is said to be this side's."""
    try:
        yield
    except EngineError as error:
        raise type(error)(f"{side.name}: {error}") from error
