"""Whatever the geometry, a case asks what fits the engine, or says that it cannot: a perfect engine never fails."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.exchange import Exchange, Geometry
from pabench.conformance.profiles import PROFILES
from pabench.conformance.registry import load_registry
from pabench.conformance.session import EngineSession
from pabench.conformance.verify import Ask
from pabench.engines import dialect
from pabench.engines.base import CAPABILITIES, Choice, Completion, EngineFacts, GenerationRequest, Usage
from pabench.probe import PRESETS, Fork, ProbePrompt, Ring, exact_logprob
from pabench.resources import data_dir
from pabench.telemetry.vocabulary import KVFacts, KVSample

BLOCKS, CONTEXTS = (1, 16, 64, 128, 256), (256, 512, 4096)


_LOOKS = 400


class PerfectEngine(EngineUnderTest):
    """Answers every ask rightly and at once, and refuses nothing but what does not fit."""

    guesses = False  # type: ignore[assignment]
    num_pools = 1  # type: ignore[assignment]

    def __init__(self, profile: str, block_size: int, context: int, capacity: int | None) -> None:
        kv = KVFacts(block_size, None if capacity is None else capacity // block_size, True, "paged")
        facts = EngineFacts("reference", "m", context, kv=kv, capabilities=CAPABILITIES)
        client = SimpleNamespace(dialect=dialect("reference"))
        session = EngineSession(client, facts, PRESETS["tiny"], PROFILES[profile], 0, None)  # type: ignore[arg-type]
        super().__init__(session, np.random.default_rng(0), Geometry.of(facts))
        self._preemptions = 0
        self._known: set[int] = set()  # a hash of each block and all before it

    def generate(
        self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None
    ) -> list[Completion]:
        for request in requests:
            self._found(None, tuple(request.prompt))
        return [self._accept(request) for request in requests]

    def ask(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> list[Completion]:
        self._wire.asked |= bool(asks)
        return [self._answer(ask) for ask in asks]

    def ask_samples(self, ask: Ask) -> tuple[Ask, Completion]:
        return ask, self.ask([ask])[0]

    def start(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> Done:  # type: ignore[override]
        answers = self.ask(asks)
        return Done(answers, [Exchange(ask.request, ask.name, 0.0, 0.0, answer)
                              for ask, answer in zip(asks, answers, strict=True)])

    def abort_all(self, requests: Sequence[GenerationRequest], delays_s: Sequence[float]) -> None:
        assert len(requests) == len(delays_s)
        self.generate(requests)

    def abort(self, request: GenerationRequest, after_tokens: int) -> Completion:
        return self._accept(request)

    def verify(self, asks: Sequence[Ask], completions: Sequence[Completion]) -> None:
        assert len(asks) == len(completions)

    def metrics(self) -> KVSample | None:
        self._preemptions += 1
        return KVSample(0.0, running=0, waiting=0, kv_usage=0.0, preemptions=self._preemptions,
                        drafted=self._preemptions, accepted=0)

    def metrics_when_stable(self, ready: Callable[[KVSample], bool], *, within_s: float) -> KVSample:
        sample = self.metrics()
        assert sample is not None
        return sample

    def metrics_renewed(self, ready: Callable[[KVSample], bool], *, within_s: float) -> KVSample | None:
        return self.metrics_when_stable(ready, within_s=within_s)

    def _accept(self, request: GenerationRequest) -> Completion:
        assert request.max_tokens >= 1
        assert len(request.prompt) >= 4
        assert len(request.prompt) + request.max_tokens <= self.longest
        return Completion()

    def _answer(self, ask: Ask) -> Completion:
        completion = self._accept(ask.request)
        for index in range(ask.n):
            prompt = ask.prompt
            fork = isinstance(prompt, Fork)
            ids = list(prompt.branches[index % 2]) if isinstance(prompt, Fork) else _continued(prompt, ask.tokens)
            ids, reason = ids[: ask.length(ids)], "stop" if ask.length(ids) < ask.tokens else "length"
            told = [exact_logprob(self.spec)] * len(ids)
            if not isinstance(prompt, Ring):  # of two branches, one was chosen
                told[0] = log(0.5)
            logprobs = told if ask.logprobs else None
            times_s = [0.0, *[1.0] * (len(ids) - 1)]  # all begin before the first ends
            choice = Choice(index, "" if fork else "x", ids, logprobs, finish_reason=reason, token_times_s=times_s)
            completion.choices.append(choice)
        completion.finish_events = ask.n
        completion.usage = Usage(len(ask.prompt.prompt), ask.tokens * ask.n, self._cached(ask))
        return completion

    def _cached(self, ask: Ask) -> int:
        """What a cache of whole blocks that forgets nothing finds of a prompt."""
        return self._found(ask.cache_salt, ask.prompt.prompt)

    def _found(self, salt: str | None, prompt: tuple[int, ...]) -> int:
        size = self.block_size or 1
        if len(prompt) // size > 600:  # no case counts so far
            return 0
        keys, key = [], hash(salt)
        for start in range(0, len(prompt) - size + 1, size):
            key = hash((key, prompt[start : start + size]))
            keys.append(key)
        found = sum(1 for _ in itertools.takewhile(self._known.__contains__, keys[: (len(prompt) - 1) // size]))
        self._known.update(keys)
        return found * size


class Done:
    """Requests that were answered at once, and seem to be under way for so long as somebody else comes meanwhile."""

    def __init__(self, completions: list[Completion], exchanges: Sequence[Exchange] = ()) -> None:
        self.exchanges = list(exchanges)
        self._completions = completions
        self._looks = 0

    @property
    def done(self) -> bool:
        self._looks += 1
        return self._looks > _LOOKS

    def wait(self) -> list[Completion]:
        return self._completions

    verify = wait


def _continued(prompt: ProbePrompt, count: int) -> list[int]:
    """The first of the tokens that may follow, again and again."""
    if isinstance(prompt, Ring):
        return prompt.expected(count)
    ids = [prompt.prompt[-1]]
    while len(ids) <= count:
        ids.append(prompt.successors(ids[-1])[0])
    return ids[1:]


def suite_file(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pabench_suite_{name}", data_dir("suites") / "http" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


EXACTNESS, SHARING, FIRST_HOLDER, ANSWERS, LENGTHS, PREEMPTION, CACHE, TENANTS, ABORTS, NUMERICS = (
    suite_file(f"test_{name}") for name in
    ("exactness", "sharing", "first_holder", "answers", "lengths", "preemption", "cache", "tenants", "aborts",
     "numerics")
)
CASES: list[tuple[Callable[..., None], list[Any]]] = [
    (EXACTNESS.test_ring_exact, [-1, 0, 1]),
    (EXACTNESS.test_short_rings, [None]),
    (EXACTNESS.test_concurrent_isolation, [None]),
    (EXACTNESS.test_shrinking_batch, [None]),
    (EXACTNESS.test_conversations, [None]),
    (LENGTHS.test_chunk_boundary_alone, [None]),
    (LENGTHS.test_chunk_boundary_beside_decodes, [None]),
    (LENGTHS.test_max_length_exact, ["two-blocks", "one-token"]),
    (PREEMPTION.test_preemption_exact, [None]),
    (PREEMPTION.test_two_large, [None]),
    (PREEMPTION.test_preempted_samples, [None]),
    (CACHE.test_cold_equals_warm, [0, 5]),
    (CACHE.test_revisited_after_churn, [None]),
    (CACHE.test_hits_beside_misses, [None]),
    (CACHE.test_second_turn, [None]),
    (CACHE.test_two_laps_after_hit, [0, 5]),
    (CACHE.test_cached_tokens, [None]),
    (TENANTS.test_salt_isolates, [None]),
    (SHARING.test_same_block_behind_another_prefix, [None]),
    (SHARING.test_shared_prefix_divergence, [None]),
    (SHARING.test_crowd_behind_one_prefix, [None]),
    (FIRST_HOLDER.test_shared_block_outlives_first_holder, [None]),
    (SHARING.test_n_samples_isolated, [0, 1, 5]),
    (SHARING.test_beam_isolated, [0, 1, 5]),
    (ABORTS.test_abort_storm, [None]),
    (ABORTS.test_abort_in_prefill, [None]),
    (ANSWERS.test_stream_equals_whole, [None]),
    (ANSWERS.test_stream_of_samples, [None]),
    (ANSWERS.test_finish_once, [None]),
    (ANSWERS.test_finish_at_a_stop_token, [None]),
    (ANSWERS.test_single_tokens_join, [None]),
    (ANSWERS.test_duplicate_request_ids, [None]),
    (ANSWERS.test_usage_exact, [True, False]),
    (NUMERICS.test_batch_invariant, [None]),
    (NUMERICS.test_spec_decode_exact, [None]),
]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("test", CASES, ids=lambda case: case[0].__name__)
def test_every_size_fits(test: tuple[Callable[..., None], list[Any]], profile: str) -> None:
    function, values = test
    asked = 0
    for block, context, capacity, value in itertools.product(BLOCKS, CONTEXTS, (None, 2048), values):
        engine = PerfectEngine(profile, block, context, capacity)
        try:
            function(engine, *([] if value is None else [value]))
        except pytest.skip.Exception:
            continue
        except Exception as error:
            error.add_note(f"block {block}, context {context}, capacity {capacity}, {value}: {engine.case}")
            raise
        assert engine.asked, (block, context, value)
        asked += 1
    assert asked > 0


# The one context that such a case needs: short enough to be filled, or longer than half of the pool.
ONE_CONTEXT = {LENGTHS.test_max_length_exact: 512, PREEMPTION.test_two_large: 2048}


def test_usual_geometries_are_asked_everything() -> None:
    """No case skips what it can well ask."""
    for function, values in CASES:
        for block, context, value in itertools.product((1, 16, 32), (512, 2048), values):
            if context != ONE_CONTEXT.get(function, context):
                continue
            try:
                function(PerfectEngine("smoke", block, context, 2048), *([] if value is None else [value]))
            except pytest.skip.Exception as error:
                pytest.fail(f"{function.__name__} of {value}, block {block}, context {context}: {error}")


def test_salts_are_timed_where_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM is without --enable-prompt-tokens-details."""
    needs = load_registry()["http/salt-isolates"].needs
    assert set(needs) == {"cache_salt", "prefix_cache"}
    engine = PerfectEngine("ci", 16, 512, 2048)
    engine.facts = replace(engine.facts, capabilities=CAPABILITIES - {"cached_tokens"})
    for counted in (TENANTS.test_salt_isolates, TENANTS.test_salt_isolates_behind_own_block):
        with pytest.raises(pytest.skip.Exception, match="by times alone: the engine lacks cached_tokens"):
            counted(engine)
    monkeypatch.setattr(TENANTS, "_first_token_s", lambda engine, ring, salt: 0.1 if salt.startswith("spy") else 0.05)
    TENANTS.test_salt_hides_in_time(engine)
    assert engine.note.startswith("a hit saves 50.0 ms, another tenant's 0.0 ms")
