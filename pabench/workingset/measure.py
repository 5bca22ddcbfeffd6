"""The whole: what a client can tell of an engine's KV cache from outside, beside what the engine states.

Each part appends what it saw to a list, and the figures are made from those lists, so a measurement that is broken off
has figures too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pabench.engines import dialects
from pabench.engines.cleaning import WHOLE, clean
from pabench.engines.client import EngineClient
from pabench.engines.doctor import Examination
from pabench.errors import EngineProtocol, EngineTimeout, UsageError
from pabench.telemetry.vocabulary import KVFacts
from pabench.workingset import block_size, eviction, preemption, recompute
from pabench.workingset.asking import SOURCE_TEXT, Asker, OutOfTime
from pabench.workingset.block_size import Shared, block_size_figure, block_size_of, measure_block_size
from pabench.workingset.eviction import CurvePoint, Limits, eviction_figure, measure_eviction
from pabench.workingset.figure import NOT_REACHED, Ended, Figure
from pabench.workingset.preemption import Level, measure_preemption, preemption_figure
from pabench.workingset.prompts import MIN_TOKENS, Prompts
from pabench.workingset.recompute import Pair, measure_recompute, recompute_figure, warm_share

SCHEMA_VERSION = 1
_TRIAL_TOKENS = 300        # of the prompt that is sent twice to see whether hits are told: several blocks
_ASSUMED_BLOCK = 16        # tokens, where neither the hits nor the engine tell
_ASSUMED_LONGEST = 2048    # tokens of a sequence, where the engine does not tell
_SHORTEST = 128            # tokens of the longest prompt, at least: below, there is nothing to vary
_LONGEST = 4096            # of a prompt: longer ones would only make the search coarser
_UNSTATED_MAX_TOKENS = 131_072
_STATED_TIMES = 2          # by default as much as this times what the engine states is tried


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds of a measurement. `max_tokens` None: twice the capacity that the engine states, else 131,072."""

    max_tokens: int | None = None
    max_seconds: float = 600.0
    precision: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1024:
            raise UsageError(f"--max-tokens is {self.max_tokens}, expected at least 1024")
        if not self.max_seconds > 0:
            raise UsageError(f"--max-seconds is {self.max_seconds:g}, expected more than 0")
        if not 0 < self.precision < 1:
            raise UsageError(f"--precision is {self.precision:g}, expected a share inside 0..1")


@dataclass(slots=True)
class WorkingSet:
    """What was seen so far. `figures` are made of it at any time."""

    examination: Examination
    options: Options
    source: str | None = None
    shared: list[Shared] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    ended: dict[str, Ended] = field(default_factory=dict)  # by name of the figure
    complete: bool = False
    asked: int = 0
    wrong: int = 0

    @property
    def stated(self) -> KVFacts:
        """What the engine states."""
        return self.examination.facts.kv or KVFacts()

    @property
    def figures(self) -> list[Figure]:
        """All four, in the order of measuring."""
        capacity = self.stated.capacity_tokens
        return [
            block_size_figure(self.shared, self._ended(block_size.NAME), self.source, self.stated.block_size),
            recompute_figure(self.pairs, self._ended(recompute.NAME)),
            eviction_figure(self.curve, self._ended(eviction.NAME), self.source, capacity),
            preemption_figure(self.levels, self._ended(preemption.NAME), capacity),
        ]

    def _ended(self, name: str) -> Ended | None:
        return self.ended.get(name, None if self.complete else NOT_REACHED)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        facts = self.examination.facts
        return {
            "schema_version": SCHEMA_VERSION, "complete": self.complete,
            "engine": {"dialect": facts.dialect, "version": facts.version, "model": facts.model,
                       "kv": None if facts.kv is None else asdict(facts.kv)},
            "probe": None if self.examination.probe is None else self.examination.probe.preset,
            "options": asdict(self.options), "hits_told_by": self.source,
            "requests": self.asked, "wrong_answers": self.wrong,
            "figures": [asdict(each) | {"ratio": each.ratio} for each in self.figures],
            "hit_curve": [asdict(each) for each in sorted(self.curve, key=lambda each: each.tokens)],
            "shared_beginnings": [asdict(each) for each in self.shared],
            "cold_and_warm": [asdict(each) for each in self.pairs],
            "growth": [asdict(each) for each in self.levels],
        }


async def measure_working_set(
    found: WorkingSet, url: str, *, api_key: str | None = None, progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Measure the engine at `url`, which nobody else may use meanwhile, and fill `found`. Raises EngineError."""
    facts, options = found.examination.facts, found.options
    # One bound on the whole, and none on an answer: a sequence that is preempted may stand still for long.
    async with EngineClient(url, dialects.dialect(facts.dialect), facts.model, timeout_s=2 * options.max_seconds,
                            api_key=api_key) as client:
        asker = Asker(client, options.max_seconds, progress)
        try:
            await _Parts(found, asker, Prompts(found.examination, options.seed)).run()
        finally:
            found.asked, found.wrong = asker.asked, asker.wrong
    found.complete = True


@dataclass(slots=True)
class _Parts:
    found: WorkingSet
    asker: Asker
    prompts: Prompts

    async def run(self) -> None:
        """All parts in turn. Raises UsageError where sequences are too short, or the model sees too little of them."""
        probe = self.found.examination.probe
        if probe is not None and probe.window is not None:
            raise UsageError(f"probe {probe.preset!r} sees no further than {probe.window} tokens, and prompts are to "
                             "be read whole: serve another preset")
        if self._longest < _SHORTEST:
            raise UsageError(f"the engine's longest sequence is {self._longest + 2} tokens, expected at least "
                             f"{_SHORTEST + 2}: serve the model with a longer context")
        await self._part(block_size.NAME, self._block_size)
        await self._part(recompute.NAME, self._recompute)
        await self._part(eviction.NAME, self._eviction)
        await self._part(preemption.NAME, self._preemption)

    async def _part(self, name: str, measure: Callable[[], Awaitable[None]]) -> None:
        """What keeps one part from going on is noted, and the next one begins."""
        self.asker.progress(f"» {name}")
        try:
            self.asker.check_time()
            await measure()
        except OutOfTime:
            self.found.ended[name] = Ended("unknown", f"--max-seconds {self.found.options.max_seconds:g} were used up")
        except (EngineProtocol, EngineTimeout, UsageError) as error:
            self.found.ended[name] = Ended("unknown", clean(str(error), WHOLE))
        if (ended := self.found.ended.get(name)) is not None:
            self.asker.progress(f"{name}: {ended.state}: {ended.reason}")

    async def _block_size(self) -> None:
        if self.found.stated.prefix_caching is False:
            self._no_cache("the engine says that it has no prefix cache")
            return
        trial, = self.prompts.distinct([min(_TRIAL_TOKENS, self._longest)])
        hit = await self.asker.find_source(trial)
        self.found.source = self.asker.source
        if hit == 0:
            self._no_cache(f"a prompt sent twice was no hit, by {SOURCE_TEXT[self.asker.source or 'usage']}")
        elif hit is None:
            self.found.ended[block_size.NAME] = Ended("unknown", "neither cached_tokens nor a counter of hits is told")
        else:
            await measure_block_size(self.asker, self.prompts, self._longest, self.found.shared)

    def _no_cache(self, why: str) -> None:
        for name in (block_size.NAME, eviction.NAME):
            self.found.ended[name] = Ended("not applicable", why)

    async def _recompute(self) -> None:
        await measure_recompute(self.asker, self.prompts, self._longest, self.found.pairs)

    async def _eviction(self) -> None:
        if eviction.NAME in self.found.ended:
            return
        by_time = warm_share(self.found.pairs) if self.asker.source is None else None
        if self.asker.source is None and (by_time is None or by_time > eviction.TOO_ALIKE):
            told = "no prompt could be sent twice" if by_time is None else (
                f"a prompt sent again takes {by_time:.0%} of its first TTFT, too much to tell a hit by")
            self.found.ended[eviction.NAME] = Ended("unknown", f"hits are not told, and {told}")
            return
        # A hit that is told by its time alone is told best of the longest prompt that was timed.
        shortest = MIN_TOKENS if by_time is None else max(each.tokens for each in self.found.pairs)
        limits = Limits(self._block, shortest, self._longest, self._max_tokens, self.found.options.precision, by_time)
        await measure_eviction(self.asker, self.prompts, limits, self.found.curve)

    async def _preemption(self) -> None:
        if "stream" not in self.found.examination.facts.capabilities:
            self.found.ended[preemption.NAME] = Ended("unknown", "told by the times of tokens, and it does not stream")
            return
        await measure_preemption(self.asker, self.prompts, block_size=self._block, longest=self._longest,
                                 max_tokens=self._max_tokens, found=self.found.levels)

    @property
    def _block(self) -> int:
        return block_size_of(self.found.shared) or self.found.stated.block_size or _ASSUMED_BLOCK

    @property
    def _longest(self) -> int:
        """Tokens of a prompt, one left for the answer."""
        told = self.found.examination.facts.max_context_tokens or _ASSUMED_LONGEST
        return min(told - 2, _LONGEST)

    @property
    def _max_tokens(self) -> int:
        capacity = self.found.stated.capacity_tokens
        default = _UNSTATED_MAX_TOKENS if capacity is None else max(_STATED_TIMES * capacity, 1024)
        return self.found.options.max_tokens or default
