"""The working set: the truth of engines that are known, of caches made up here, and the decisions by themselves.

What is asserted of engines are tokens and counters, never times.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from pabench.engines import EngineProcess
from pabench.engines.base import Choice, Completion, EngineFacts, GenerationRequest
from pabench.engines.doctor import Examination, examine
from pabench.errors import EngineProtocol, UsageError
from pabench.probe import PRESETS, Codec
from pabench.stub.request import continue_prompt
from pabench.telemetry.vocabulary import KVSample
from pabench.workingset import Figure, Options, WorkingSet, measure_working_set
from pabench.workingset.asking import Asker, Visit
from pabench.workingset.block_size import block_size_figure, block_size_of, measure_block_size
from pabench.workingset.eviction import CurvePoint, Limits, eviction_figure, measure_eviction, share_by_time, share_out
from pabench.workingset.figure import Ended
from pabench.workingset.preemption import Level, first_stall, first_wait, level_of, levels_up_to, preemption_figure
from pabench.workingset.prompts import Prompt, Prompts
from pabench.workingset.recompute import Pair, recompute_figure, warm_share
from tests.load.support import serving, stream

PROBE = Examination(EngineFacts("reference", "probe", 4096, capabilities=frozenset({"token_ids", "stream"})),
                    PRESETS["tiny"], (), ())
OTHER = replace(PROBE, probe=None)
WORDS = replace(OTHER, facts=replace(OTHER.facts, capabilities=frozenset({"stream"})))


class Cache(Asker):
    """Asked instead of an engine: a prefix cache of so many blocks, the least recently used of which goes first."""

    def __init__(self, block_size: int, num_blocks: int) -> None:
        self.block_size, self.num_blocks = block_size, num_blocks
        self.source, self.progress, self.asked = "usage", lambda text: None, 0
        self._held: OrderedDict[int, None] = OrderedDict()

    async def visit(self, prompt: Prompt, max_tokens: int = 1) -> Visit:
        ids, size = prompt.sent, self.block_size
        assert isinstance(ids, tuple)
        self.asked += 1
        keys = [0]
        for start in range(0, len(ids) - size + 1, size):
            keys.append(hash((keys[-1], ids[start : start + size])))
        del keys[0]
        hits = 0
        while hits < (len(ids) - 1) // size and keys[hits] in self._held:
            hits += 1
        for key in reversed(keys):  # the end of a prompt is evicted before its beginning
            self._held[key] = None
            self._held.move_to_end(key)
        while len(self._held) > self.num_blocks:
            self._held.popitem(last=False)
        return Visit(len(ids), hits * size, 0.0, (0.0,))


@given(size=st.integers(1, 400), examination=st.sampled_from([PROBE, OTHER]), seed=st.integers(0, 99))
def test_any_block_size_is_found_by_a_few_prompts(size: int, examination: Examination, seed: int) -> None:
    cache, found = Cache(size, 100_000), []
    asyncio.run(measure_block_size(cache, Prompts(examination, seed), 4000, found))
    assert block_size_of(found) == size
    assert cache.asked <= 12


def test_hits_that_fit_no_block_size_are_told() -> None:
    class Odd(Cache):
        async def visit(self, prompt: Prompt, max_tokens: int = 1) -> Visit:
            visit = await super().visit(prompt, max_tokens)
            return replace(visit, cached=(visit.cached or 0) // 4)  # counted in blocks, as vLLM 0.8 does

    found: list = []
    asyncio.run(measure_block_size(Odd(4, 1000), Prompts(PROBE, 0), 4000, found))
    figure = block_size_figure(found, None, "counter", 4)
    assert (figure.state, figure.value, figure.stated) == ("unknown", None, 4)
    assert "64 → 16" in figure.how


@given(num_blocks=st.integers(40, 300), size=st.sampled_from([8, 16]), seed=st.integers(0, 99))
def test_the_knee_of_any_pool_lies_between_what_held_and_what_did_not(num_blocks: int, size: int, seed: int) -> None:
    curve: list[CurvePoint] = []
    limits = Limits(size, 32, 1000, 60_000, 0.05)
    asyncio.run(measure_eviction(Cache(size, num_blocks), Prompts(OTHER, seed), limits, curve))
    figure = eviction_figure(curve, None, "usage", num_blocks * size)
    assert figure.state == "found"
    assert figure.low is not None
    assert figure.high is not None
    # The last block of a prompt is never hit, so one block more than the pool has still does no harm.
    assert figure.low - size <= num_blocks * size < figure.high
    assert figure.high <= max(1.05 * figure.low, figure.low + size)


def test_what_still_fits_at_the_most_that_is_tried_is_at_least_that() -> None:
    curve: list[CurvePoint] = []
    asyncio.run(measure_eviction(Cache(16, 9999), Prompts(OTHER, 0), Limits(16, 32, 1000, 3000, 0.05), curve))
    figure = eviction_figure(curve, None, "usage", None)
    assert (figure.state, figure.value, figure.high) == ("at least", 2992, None)


@given(blocks=st.integers(1, 3000), longest=st.integers(64, 4096))
def test_a_working_set_is_shared_out_in_whole_blocks(blocks: int, longest: int) -> None:
    counts = share_out(blocks, Limits(16, 32, longest, 10**6, 0.05))
    assert sum(counts) == blocks
    assert max(counts) * 16 <= longest
    assert max(counts) - min(counts) <= 1


def test_a_prompt_is_a_hit_where_its_time_is_nearer_to_one() -> None:
    assert share_by_time([1.0, 2.0, 4.0, 1.0], [0.3, 0.5, 3.9, 1.1], warm_share=0.2) == 0.5
    assert warm_share([Pair(64, None, 1.0, 0.9), Pair(512, None, 4.0, 1.0), Pair(512, None, 4.0, 2.0)]) == 0.9
    assert warm_share([Pair(1, None, 1.0, 2.0), Pair(2, None, 1.0, 0.25), Pair(3, None, 4.0, 2.0)]) == 0.5
    assert warm_share([]) is None


@given(price=st.floats(0.01, 5), seed=st.integers(0, 99))
def test_the_price_of_a_token_lies_in_its_interval(price: float, seed: int) -> None:
    """`price` in milliseconds a token; noise of a fifth of what 64 tokens cost."""
    noise = np.random.default_rng(seed).normal(0, 0.2 * 64 * price, 18)
    pairs = [Pair(tokens, tokens - 1, 0.05 + (price * (tokens - 1) + noise[i]) / 1e3, 0.05)
             for i, tokens in enumerate(sorted([64, 128, 256, 512, 1024, 2048] * 3))]
    figure = recompute_figure(pairs, None)
    assert figure.state == "found"
    assert figure.value == pytest.approx(1000 * price, rel=0.05)
    untold = [replace(pair, hit=None) for pair in pairs]
    assert recompute_figure(untold, None).value == pytest.approx(1000 * price, rel=0.05)


def test_a_cost_that_is_nothing_is_not_made_up() -> None:
    flat = [Pair(tokens, None, 0.05 + 1e-4 * (i % 2), 0.05) for i, tokens in enumerate([64, 128, 256, 512] * 3)]
    assert recompute_figure(flat, None).state == "unknown"
    assert "not told apart from nothing" in recompute_figure(flat, None).how


def visits(*times: Sequence[float]) -> list[Visit]:
    return [Visit(100, None, 0.0, tuple(each)) for each in times]


def test_a_stream_that_stands_still_until_another_has_ended() -> None:
    steady = [float(i) for i in range(40)]
    still = [*steady[:20], 45.0, 46.0]
    assert first_stall(visits(steady, steady)) is None
    assert first_stall(visits(steady, still)) == 19.0
    assert first_stall(visits(steady, [*steady[:35], 45.0])) is None  # too few of the other's in the gap to be sure
    assert first_stall(visits(steady, [*steady[:10], *steady[25:]])) is None  # went on beside it: a slow machine
    # Both stood still, and what was overdue came at once, first of one, then of the other.
    late = [*steady[:20], *(45.0 + i * 1e-3 for i in range(20))], [*steady[:20], *(46.0 + i * 1e-3 for i in range(20))]
    assert first_stall(visits(*late)) is None
    assert first_stall(visits(*late), at_pace=False) == 19.0
    level = level_of(visits(steady, still), preempted=1.0, block_size=16)
    assert level == Level(2, 2 * (100 + 20 - 1), 2 * 128, 1.0, "preempted")


def test_a_stream_that_begins_only_behind_an_end_has_waited() -> None:
    first = [float(i) for i in range(10)]
    assert first_wait(visits(first, [0.5, *first[1:]])) is None
    waiting = visits(first, [0.5, *first[1:]], [9.5, 10.0])
    assert first_wait(waiting) == 0.5
    level = level_of(waiting, preempted=0.0, block_size=1)
    assert (level.sign, level.live_tokens) == ("waited", 100 + 100)


@given(most=st.integers(1, 200_000))
def test_levels_end_at_the_most_that_is_tried(most: int) -> None:
    levels = list(levels_up_to(most))
    assert levels[-1:] == [most] * (most >= 256)
    assert all(low < high <= low * 4 / 3 + 1 for low, high in pairwise(levels))


def test_levels_without_a_sign_give_a_lower_bound() -> None:
    steady = [float(i) for i in range(40)]
    level = level_of(visits(steady, steady), preempted=None, block_size=16)
    figure = preemption_figure([level], Ended("unknown", "out of time"), 1000)
    assert (figure.state, figure.value, figure.stated) == ("at least", 278, 1000)
    assert "out of time" in figure.how


@pytest.mark.parametrize("examination", [PROBE, OTHER, WORDS])
def test_same_seed_same_prompts(examination: Examination) -> None:
    def drawn(seed: int) -> list[Prompt]:
        prompts = Prompts(examination, seed)
        beginning = prompts.beginning(80)
        return [*prompts.distinct([40, 50], at_once=True), *(prompts.sharing(beginning, n) for n in (64, 63))]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def measured(url: str, *, probe: str | None = None, **options: float) -> WorkingSet:
    found = WorkingSet(asyncio.run(examine(url, probe=probe)), Options(**options))  # type: ignore[arg-type]
    asyncio.run(measure_working_set(found, url))
    assert found.complete
    return found


def by_name(found: WorkingSet) -> dict[str, Figure]:
    return {figure.name: figure for figure in found.figures}


def reference(probe: Path, folder: Path, *options: object) -> EngineProcess:
    command = [sys.executable, "-m", "reference_engine", "--model", str(probe), "--port", "{port}",
               "--max-model-len", "256", *map(str, options)]
    return EngineProcess(command, url="http://127.0.0.1:{port}", log=folder / "log")


@pytest.mark.parametrize(("num_blocks", "block_size", "mode"), [(64, 8, "recompute"), (45, 16, "swap")])
def test_the_reference_engine_is_found_to_be_what_it_is(
    num_blocks: int, block_size: int, mode: str, tiny_probe: Path, tmp_path: Path
) -> None:
    options = ("--num-blocks", num_blocks, "--block-size", block_size, "--preemption-mode", mode)
    capacity = num_blocks * block_size
    with reference(tiny_probe, tmp_path, *options) as engine:
        found = measured(engine.url, precision=0.1)
    figures = by_name(found)
    size, knee, onset = figures["block size"], figures["eviction knee"], figures["preemption onset"]
    assert (size.state, size.value, size.stated, size.ratio) == ("found", block_size, block_size, 1.0)
    assert (knee.state, knee.stated) == ("found", capacity)
    assert knee.low - block_size <= capacity < knee.high <= max(1.1 * knee.low, knee.low + block_size)
    assert onset.state == "found"
    assert "preempted" in onset.how
    sequences = found.levels[-1].sequences
    assert abs(onset.value - capacity) <= sequences * block_size
    assert found.levels[-1].preemptions >= 1
    assert found.source == "usage"
    assert found.wrong == 0


def test_what_a_contiguous_cache_lacks_is_not_applicable(tiny_probe: Path, tmp_path: Path) -> None:
    with reference(tiny_probe, tmp_path, "--kv", "contiguous", "--num-blocks", 32) as engine:
        figures = by_name(measured(engine.url))
    for name in ("block size", "eviction knee"):
        assert (figures[name].state, figures[name].value) == ("not applicable", None)
        assert "no prefix cache" in figures[name].how
    onset = figures["preemption onset"]
    assert onset.state == "found"
    assert "waited" in onset.how  # 512 slots hold two sequences of 256 reserved ones
    assert figures["recompute cost"].stated is None


async def silent(request: web.Request) -> web.StreamResponse:
    """The probe's answer in one piece, without usage, each as late as the other."""
    await asyncio.sleep(0.02)
    body = orjson.loads(await request.read())
    following = continue_prompt(tuple(Codec.decode(body["prompt"])), None)
    ids = [next(following)[0] for _ in range(body["max_tokens"])]
    return web.Response(body=stream(ids), content_type="text/event-stream")


def test_what_is_not_told_is_unknown_with_the_reason() -> None:
    examination = replace(PROBE, facts=EngineFacts("openai", "m", 512, capabilities=frozenset({"stream"})))
    found = WorkingSet(examination, Options(max_tokens=1024))

    async def go() -> None:
        async with serving(silent) as url:
            await measure_working_set(found, url)

    asyncio.run(go())
    figures = by_name(found)
    assert (figures["block size"].state, figures["block size"].how) == (
        "unknown", "neither cached_tokens nor a counter of hits is told")
    assert figures["eviction knee"].state == "unknown"
    assert "hits are not told" in figures["eviction knee"].how
    assert figures["preemption onset"].state == "at least"
    assert all(figure.stated is None for figure in found.figures)
    assert found.wrong == 0


class Counting:
    """A client of an engine without usage, whose counter grows by 48 with every prompt but the first."""

    def __init__(self) -> None:
        self.asked, self.has_metrics = 0, True

    async def generate(self, request: GenerationRequest) -> Completion:
        self.asked += 1
        return Completion([Choice(0, "x", token_times_s=[0.0])])

    async def kv_sample(self) -> KVSample | None:
        return KVSample(0.0, prefix_hits=48.0 * max(0, self.asked - 1)) if self.has_metrics else None


def test_hits_are_told_by_a_counter_where_usage_does_not() -> None:
    client, prompt = Counting(), Prompt("some words", 2)
    asker = Asker(client, 10.0, lambda text: None)  # type: ignore[arg-type]
    assert asyncio.run(asker.find_source(prompt)) == 48
    assert asker.source == "counter"
    assert asyncio.run(asker.visit(prompt)).cached == 48
    client.has_metrics = False
    with pytest.raises(EngineProtocol, match="counter of prefix hits"):
        asyncio.run(asker.visit(prompt))


def test_time_that_is_used_up_leaves_what_was_found() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    found = WorkingSet(PROBE, Options(max_seconds=0.2))

    async def go() -> None:
        async with serving(never) as url:
            await measure_working_set(found, url)

    asyncio.run(go())
    assert {figure.state for figure in found.figures} == {"unknown"}
    assert {figure.how for figure in found.figures} == {"--max-seconds 0.2 were used up"}


def test_a_model_that_sees_a_window_of_its_prompts_is_refused() -> None:
    found = WorkingSet(replace(PROBE, probe=PRESETS["window"]), Options())
    with pytest.raises(UsageError, match="probe 'window' sees no further than 64 tokens"):
        asyncio.run(measure_working_set(found, "http://127.0.0.1:9"))


@pytest.mark.parametrize(("options", "told"), [({"max_tokens": 5}, "--max-tokens is 5"), ({"max_seconds": 0},
                         "--max-seconds is 0"), ({"precision": 1.0}, "--precision is 1")])
def test_bounds_that_make_no_sense_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Options(**options)  # type: ignore[arg-type]


@pytest.fixture
def wrong_stub(tmp_path: Path) -> Iterator[EngineProcess]:
    command = [sys.executable, "-m", "pabench", "stub", "--ttft-ms", "1", "--itl-ms", "1", "--wrong-every", "1",
               "--port", "{port}"]
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=tmp_path / "stub.log") as process:
        yield process


def test_wrong_answers_are_counted(wrong_stub: EngineProcess) -> None:
    assert measured(wrong_stub.url, probe="gqa", max_tokens=1024).wrong > 0
