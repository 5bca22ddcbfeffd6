"""Whatever the geometry, a case asks what fits the engine, or says that it cannot: a perfect engine never fails."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.exchange import Geometry
from pabench.conformance.profiles import PROFILES
from pabench.conformance.session import EngineSession
from pabench.conformance.verify import Ask
from pabench.engines.base import CAPABILITIES, Choice, Completion, EngineFacts, GenerationRequest, Usage
from pabench.probe import PRESETS, Fork
from pabench.resources import data_dir
from pabench.telemetry.vocabulary import KVFacts, KVSample

BLOCKS, CONTEXTS = (1, 8, 16, 32, 64, 128, 256), (256, 512, 2048, 4096)


class PerfectEngine(EngineUnderTest):
    """Answers every ask rightly and at once, and refuses nothing but what does not fit."""

    def __init__(self, profile: str, block_size: int, context: int, capacity: int | None) -> None:
        kv = KVFacts(block_size, None if capacity is None else capacity // block_size, True, "paged")
        facts = EngineFacts("reference", "m", context, kv=kv, capabilities=CAPABILITIES)
        session = EngineSession(None, facts, PRESETS["tiny"], PROFILES[profile], 0, None)  # type: ignore[arg-type]
        super().__init__(session, np.random.default_rng(0), Geometry.of(facts))
        self._preemptions = 0

    def generate(
        self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None
    ) -> list[Completion]:
        return [self._accept(request) for request in requests]

    def ask(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> list[Completion]:
        self.asked |= bool(asks)
        return [self._answer(ask) for ask in asks]

    def ask_samples(self, ask: Ask) -> tuple[Ask, Completion]:
        return ask, self.ask([ask])[0]

    def metrics(self) -> KVSample | None:
        self._preemptions += 1
        return KVSample(0.0, running=0, waiting=0, kv_usage=0.0, preemptions=self._preemptions)

    def metrics_when_stable(self, ready: Callable[[KVSample], bool], *, within_s: float) -> KVSample:
        sample = self.metrics()
        assert sample is not None
        return sample

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
            ids = [prompt.branches[index % 2][0]] if isinstance(prompt, Fork) else prompt.expected(ask.tokens)
            completion.choices.append(Choice(index, "" if fork else "x", ids, finish_reason="length"))
        completion.finish_events = ask.n
        completion.usage = Usage(len(ask.prompt.prompt), ask.tokens * ask.n, 0)
        return completion


def suite_file(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pabench_suite_{name}", data_dir("suites") / "http" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXACTNESS, SHARING, ANSWERS = (suite_file(f"test_{name}") for name in ("exactness", "sharing", "answers"))
CASES: list[tuple[Callable[..., None], list[Any]]] = [
    (EXACTNESS.test_ring_exact, [-1, 0, 1]),
    (EXACTNESS.test_concurrent_isolation, [None]),
    (EXACTNESS.test_preemption_exact, [None]),
    (SHARING.test_cold_equals_warm, [0, 5]),
    (SHARING.test_same_block_behind_another_prefix, [None]),
    (SHARING.test_shared_prefix_divergence, [None]),
    (SHARING.test_n_samples_isolated, [0, 1, 5]),
    (ANSWERS.test_stream_equals_whole, [None]),
    (ANSWERS.test_stream_of_samples, [None]),
    (ANSWERS.test_usage_exact, [True, False]),
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


def test_usual_geometries_are_asked_everything() -> None:
    """No case skips what it can well ask."""
    for function, values in CASES:
        for block, context, value in itertools.product((1, 16, 32), (512, 2048), values):
            function(PerfectEngine("smoke", block, context, 2048), *([] if value is None else [value]))
