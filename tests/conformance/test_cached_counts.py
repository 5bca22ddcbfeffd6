"""Counts of cached tokens: whole blocks alone, or parts of them too where the engine says so."""

from __future__ import annotations

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import CaseFailed
from pabench.conformance.verify import Ask
from pabench.engines import dialect
from pabench.telemetry.exposition import parse_exposition
from tests.conformance.test_sizes import CACHE, PerfectEngine
from tests.engines.pages import TRTLLM_PAGE

CONFIG = 'trtllm_kv_cache_config_info{enable_block_reuse="True",enable_partial_reuse="%s",model_name="m"} 1.0\n'


class Trtllm(PerfectEngine):
    """TensorRT-LLM by default: what a prompt shares with an earlier one is a hit to the token. `more` is claimed."""

    partial_reuse = "True"
    more = 0

    def __init__(self) -> None:
        super().__init__("smoke", 16, 512, 2048)
        self._seen: list[tuple[int, ...]] = []
        page = TRTLLM_PAGE + CONFIG % self.partial_reuse

        async def metrics() -> object:
            return parse_exposition(page.encode())

        self._session.client.dialect = dialect("tensorrt-llm")
        self._session.client.metrics = metrics  # type: ignore[method-assign]
        self._wire.call = lambda coroutine, exchanges: _now(coroutine)  # type: ignore[method-assign, assignment]

    def _cached(self, ask: Ask) -> int:
        prompt = ask.prompt.prompt
        found = max((_common(prompt, other) for other in self._seen), default=0)
        self._seen.append(tuple(prompt))
        return min(found, len(prompt) - 1) + (self.more if found > 8 else 0)


class WholeBlocks(Trtllm):
    """It says that only whole blocks are hits, and counts as the other does."""

    partial_reuse = "False"


class Counts(Trtllm):
    """It counts the token that is always computed."""

    more = 1


class Speculates(PerfectEngine):
    """vLLM with drafts made of hidden states: the last block of a hit is computed again. `fewer` blocks are."""

    guesses = True  # type: ignore[assignment]
    fewer = 1

    def __init__(self) -> None:
        super().__init__("smoke", 16, 512, 2048)

    def _cached(self, ask: Ask) -> int:
        return max(0, super()._cached(ask) - 16 * self.fewer)


class DropsTwo(Speculates):
    """And one more."""

    fewer = 2


class Forgets(Speculates):
    """As many, and it does not guess."""

    guesses = False  # type: ignore[assignment]


class TwoPools(Speculates):
    """Requests go to one of two engines in turn: what was sent to one is not found in the other."""

    guesses = False  # type: ignore[assignment]
    num_pools = 2  # type: ignore[assignment]
    fewer = 0
    more = 0
    turn = False

    def _cached(self, ask: Ask) -> int:
        self.turn = not self.turn
        found = super()._cached(ask)
        return found + self.more if self.turn else 0


class TwoThatBoast(TwoPools):
    """And the count is too high."""

    more = 16


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _now(coroutine: object) -> object:
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def test_parts_of_blocks_are_right_where_the_engine_says_so() -> None:
    engine = Trtllm()
    CACHE.test_cached_tokens(engine)
    assert "reuses parts of blocks" in engine.note


def test_whole_blocks_are_right_there_too() -> None:
    """A tail may be gone, or not worth copying."""
    engine = Trtllm()
    engine._cached = PerfectEngine._cached.__get__(engine)  # type: ignore[method-assign]
    CACHE.test_cached_tokens(engine)


@pytest.mark.parametrize(("engine", "wanted"), [
    (WholeBlocks, r"cached_tokens = 0: .* whole blocks of 16, the last"), (Counts, r"cached_tokens = 0 to 14: "),
    (DropsTwo, r"cached_tokens = 16 to 32: "), (Forgets, r"cached_tokens = 16: "),
    (TwoThatBoast, r"cached_tokens = 0: 0 of")])
def test_no_other_count_is(engine: type[Trtllm], wanted: str) -> None:
    with pytest.raises(CaseFailed, match=wanted):
        CACHE.test_cached_tokens(engine())


@pytest.mark.parametrize(("engine", "said"), [(Speculates, "a block less"), (TwoPools, "several pools")])
def test_fewer_are_right_where_the_engine_is_known_to_find_fewer(engine: type[PerfectEngine], said: str) -> None:
    asked = engine()  # type: ignore[call-arg]
    CACHE.test_cached_tokens(asked)
    assert said in asked.note


@pytest.mark.parametrize(("page", "pools"), [
    ("", 1), ('usage{engine="0"} 0.1\nrunning{engine="0"} 1\n', 1), ('usage{engine="0"} 0.1\nusage{engine="1"} 0\n', 2),
    ('usage{dp_rank="0",tp_rank="0"} 0.1\nusage{dp_rank="1",tp_rank="0"} 0.1\nusage{dp_rank="2",tp_rank="0"} 0\n', 3)])
def test_replicas_behind_one_url_have_a_pool_each(page: str, pools: int) -> None:
    engine = Trtllm()

    async def metrics() -> object:
        return parse_exposition(page.encode())

    engine._session.client.metrics = metrics  # type: ignore[method-assign]
    assert EngineUnderTest.num_pools.fget(engine) == pools  # type: ignore[attr-defined]
