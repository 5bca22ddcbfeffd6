"""A stated cache state: on the reference engine brought about and found, and by itself on records made for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from pabench.analysis import load_run, summarise
from pabench.engines.base import EngineFacts
from pabench.engines.doctor import examine
from pabench.engines.reference import ReferenceDialect
from pabench.errors import UsageError
from pabench.load import Manifest, cache_state, run_loop, run_workload
from pabench.load.cache_state import check, prefixes_to_fill
from pabench.load.manifest import CacheCheck, read_manifest
from pabench.load.planning import plan
from pabench.load.records import RequestRecord
from pabench.load.schedule import Schedule
from pabench.load.workload import CacheState, Workload
from pabench.probe import PRESETS
from pabench.telemetry.vocabulary import KVFacts
from tests.load.support import CAPABILITIES, Handler, workload

FACTS = EngineFacts("openai", "stub", 4096, capabilities=CAPABILITIES | {"cached_tokens"})
TOLD = replace(FACTS, kv=KVFacts(block_size=8))


def stated(state: CacheState | None, **fields: object) -> Workload:
    return workload(prompt_tokens={"law": "fixed", "tokens": 40}, shared_prefix={"tokens": 40}, cache=state,
                    **{"num_requests": 12, **fields})


def ran(url: str, load: Workload, folder: Path) -> Manifest:
    return run_loop(run_workload(run_loop(examine(url)), load, folder, url=url, label="reference", seed=3))


def test_a_cold_run_is_cold_each_time_and_a_warm_one_warm(url: str, tmp_path: Path) -> None:
    for number in range(2):
        manifest = ran(url, stated("cold"), tmp_path / f"cold-{number}")
        assert manifest.cache is not None
        assert (manifest.cache.stated, manifest.cache.checked, manifest.cache.broken) == ("cold", 12, None)
        assert "the cache was emptied" in " ".join(manifest.notes)
    cold = load_run(tmp_path / "cold-1").requests["cached_tokens"].sum()
    manifest = ran(url, stated("warm"), tmp_path / "warm")
    assert manifest.cache is not None
    assert manifest.cache.broken is None
    assert "12 of 12 prompts were asked once before" in " ".join(manifest.notes)
    warm = load_run(tmp_path / "warm").requests["cached_tokens"].sum()
    assert warm >= 12 * 72
    assert 0 < cold < warm  # the prefix that they share is hit in a cold run too


def test_what_was_cached_before_a_run_that_states_cold_makes_it_invalid(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceDialect, "cache_reset_path", None)
    ran(url, stated(None), tmp_path / "before")
    manifest = ran(url, stated("cold"), tmp_path / "run")
    assert manifest.cache is not None
    assert "that nobody had sent in this run" in str(manifest.cache.broken)
    reasons = summarise(load_run(tmp_path / "run")).validity.reasons
    assert any(reason.startswith("the cache was not cold, as stated: ") for reason in reasons)


def shared_out(share: float, **fields: object) -> Workload:
    lengths = {"law": "uniform", "min": 10, "max": 90}
    return workload(**{"num_requests": 12, "prompt_tokens": lengths, "cache": share, **fields})


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_share_is_brought_about_and_found(url: str, tmp_path: Path, share: float) -> None:
    manifest = ran(url, shared_out(share, output_tokens={"law": "fixed", "tokens": 2}), tmp_path / "run")
    assert manifest.cache is not None
    assert (manifest.cache.stated, manifest.cache.broken) == (share, None)
    assert manifest.cache.found == pytest.approx(share, abs=0.03)
    assert read_manifest(tmp_path / "run") == manifest


def test_a_share_that_was_not_met_makes_the_run_invalid(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceDialect, "cache_reset_path", None)
    ran(url, shared_out(0.5, cache=None), tmp_path / "before")
    manifest = ran(url, shared_out(0.5), tmp_path / "run")
    assert manifest.cache is not None
    assert manifest.cache.found == 1.0
    reasons = summarise(load_run(tmp_path / "run")).validity.reasons
    assert any(reason.startswith("the cache was not filled to 50%, as stated: ") for reason in reasons)
    assert "no route to empty its cache" in " ".join(manifest.notes)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("size", [1, 8, 16])
def test_the_blocks_to_fill_come_to_the_share_spread_by_the_seed(share: float, size: int) -> None:
    schedule = plan(shared_out(share, num_requests=200), 0, TOLD, PRESETS["tiny"], "p")
    found = prefixes_to_fill(schedule.requests, share, size, 4)
    could = {one.index: (one.prompt_tokens - 1) // size * size for one in schedule.requests}
    assert all(tokens % size == 0 and 0 < tokens <= could[index] for index, tokens in found.items())
    assert all(abs(found.get(index, 0) - share * most) < size for index, most in could.items())
    assert abs(sum(found.values()) - share * sum(could.values())) <= size
    assert found == prefixes_to_fill(schedule.requests, share, size, 4)
    assert size == 1 or found != prefixes_to_fill(schedule.requests, share, size, 5)


@pytest.mark.parametrize(("cached", "broken"), [(8, None), (16, "192 of the 192"), (0, "0 of the 192 .* expected 50%")])
def test_a_share_is_met_within_its_tolerance(cached: int, broken: str | None) -> None:
    schedule = plan(shared_out(0.5, prompt_tokens={"law": "fixed", "tokens": 24}), 0, TOLD, PRESETS["tiny"], "p")
    found = check(0.5, schedule.requests, records(schedule, [cached] * 12), 8)
    assert (found.broken is None) if broken is None else re.match(broken, str(found.broken))
    assert found.found == cached / 16


def test_what_a_share_needs_is_said_before() -> None:
    for share in (0.0, 1.0, 1.5):
        with pytest.raises(UsageError, match="expected a share between 0 and 1"):
            shared_out(share)
    with pytest.raises(UsageError, match="whose own hits would add to it"):
        shared_out(0.5, shared_prefix={"tokens": 8})
    with pytest.raises(UsageError, match="'cold' or 'warm'"):
        shared_out(0.5, cache="hot")
    with pytest.raises(UsageError, match="does not tell the size of its blocks"):
        planned(shared_out(0.5))
    few = plan(shared_out(0.5, num_requests=2), 0, TOLD, PRESETS["tiny"], "p")
    with pytest.raises(UsageError, match="at least 20 whole blocks of 16 tokens"):
        prefixes_to_fill(few.requests, 0.5, 16, 0)


def planned(load: Workload) -> Schedule:
    return plan(load, 0, FACTS, PRESETS["tiny"], "p")


def records(schedule: Schedule, cached: Sequence[int | None], first_s: float = 0.5) -> list[RequestRecord]:
    """Sent one a second, each answered `first_s` later."""
    return [RequestRecord(one.name, one.index, 0, float(one.index), sent_s=float(one.index), outcome="ok",
                          first_s=one.index + first_s, prompt_tokens=one.prompt_tokens, cached_tokens=hit)
            for one, hit in zip(schedule.requests, cached, strict=True)]


@pytest.mark.parametrize(("cached", "broken"), [
    ([0, 42, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),       # separator, salt and 40 shared tokens
    ([0, 44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "1 of 12 requests hit 2 tokens"),
    ([8, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "2 of 12 requests hit 13 tokens"),
    ([None] * 12, "no answer says"),
])
def test_cold_allows_what_the_run_itself_has_sent(cached: list[int | None], broken: str | None) -> None:
    schedule = planned(stated("cold"))
    found = check("cold", schedule.requests, records(schedule, cached), 8)
    assert (found.broken is None) if broken is None else broken in str(found.broken)


def test_where_cached_tokens_are_left_out_they_are_none() -> None:
    """As SGLang does, and vLLM did, in answers that have usage."""
    schedule = planned(stated("cold"))
    silent = [replace(one, usage_prompt_tokens=one.prompt_tokens) for one in records(schedule, [None] * 12)]
    assert check("cold", schedule.requests, silent, 8) == CacheCheck(stated="cold", checked=12, broken=None)
    half = [replace(one, usage_prompt_tokens=one.prompt_tokens) for one in records(schedule, [72, None] * 6)]
    assert "432 of the 864" in str(check("warm", schedule.requests, half, 8).broken)


def test_what_a_resumed_run_sent_again_may_hit_itself() -> None:
    schedule = planned(stated("cold"))
    sent = records(schedule, [0, 42, 40, 80, 0, 0, 0, 0, 0, 0, 0, 0])
    assert check("cold", schedule.requests, sent, 8).broken is not None
    found = check("cold", schedule.requests, sent, 8, until_s=3.0)
    assert (found.broken, found.checked) == (None, 3)


def test_what_is_under_way_at_the_same_time_may_be_hit() -> None:
    """An engine may compute the second first."""
    schedule = planned(stated("cold"))
    assert check("cold", schedule.requests, records(schedule, [42] + [0] * 11, first_s=1.5), 8).broken is None


def test_so_may_what_is_under_way_while_a_whole_answer_is_computed() -> None:
    schedule = planned(stated("cold"))
    made = records(schedule, [42] + [0] * 11)
    for record in made:
        record.first_s, record.end_s = None, record.intended_s + 1.5
    assert check("cold", schedule.requests, made, 8).broken is None


def test_a_request_that_was_cut_off_may_be_hit_too() -> None:
    """It told nothing of its own hits, and left its blocks."""
    schedule = planned(stated("cold"))
    made = records(schedule, [None, 42] + [0] * 10)
    made[0].outcome = "aborted"
    assert check("cold", schedule.requests, made, 8).broken is None


def test_all_prompts_may_hit_the_separator() -> None:
    alone = planned(stated("cold", num_requests=2))
    assert check("cold", alone.requests, records(alone, [1, 1]), 1).broken is None


@pytest.mark.parametrize("load", [stated("cold", n=2), shared_out(0.5, n=2)], ids=["cold", "share"])
def test_what_samples_could_not_tell_is_refused(load: Workload) -> None:
    with pytest.raises(UsageError, match="find their own prompt"):
        plan(load, 0, TOLD, PRESETS["tiny"], "p")


@pytest.mark.parametrize(("cached", "broken"), [(80, False), (64, False), (48, True), (40, True), (0, True)])
def test_blocks_whose_size_is_not_told_are_as_large_as_the_hits_say(cached: int, broken: bool) -> None:
    """82 tokens: 64 of them may be one block of 64."""
    schedule = planned(stated("warm"))
    found = check("warm", schedule.requests, records(schedule, [cached] * 12), None)
    assert (found.broken is not None) == broken


@pytest.mark.parametrize(("cached", "broken"), [(72, None), (64, "768 of the 864 prompt tokens"), (0, "0 of the 864")])
def test_warm_is_nearly_all_in_whole_blocks(cached: int, broken: str | None) -> None:
    schedule = planned(stated("warm"))
    found = check("warm", schedule.requests, records(schedule, [cached] * 12), 8)
    assert (found.broken is None) if broken is None else broken in str(found.broken)


def test_a_state_that_nobody_can_check_is_refused() -> None:
    with pytest.raises(UsageError, match="checked by tokens that are known"):
        workload(prompt="text", cache="cold")
    with pytest.raises(UsageError, match="needs cached_tokens"):
        plan(stated("cold"), 0, EngineFacts("openai", "m", 4096, capabilities=CAPABILITIES), PRESETS["tiny"], "p")


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(("held", "told"), [(0, "was emptied"), (3, "was emptied"),
                                            (99, "was refused, as while blocks")])
def test_a_cache_whose_blocks_are_held_is_not_called_emptied(
    held: int, told: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM says so in the body, the status is 200; SGLang by its status."""
    monkeypatch.setattr(cache_state, "_RESET_PAUSE_S", 0.01)
    asked: list[bool] = []

    async def reset(_: web.Request) -> web.Response:
        asked.append(len(asked) >= held)
        return web.json_response({"success": asked[-1]}, status=200 if asked[-1] else status)

    assert told in emptied(reset)


def emptied(reset: Handler) -> str:
    """What is told of a cache behind that route."""
    async def go() -> str:
        app = web.Application()
        app.router.add_post("/reset_prefix_cache", reset)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5.0)) as http:
                return await cache_state._empty(http, f"http://127.0.0.1:{runner.addresses[0][1]}/reset_prefix_cache")
        finally:
            await runner.cleanup()

    return run_loop(go())


def test_a_reset_that_hangs_is_not_waited_for_and_breaks_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_state, "_RESET_TIMEOUT_S", 0.1, raising=False)

    async def reset(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    assert "failed (TimeoutError), so it is only checked" in emptied(reset)


def test_of_long_prompts_fewer_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count is kept for each of their tokens."""
    schedule = planned(stated("cold"))
    made = [replace(one, max_tokens=8) for one in records(schedule, [0, 42, 44] + [0] * 9)]
    of_three = sum(one.prompt_tokens + 8 for one in made[:3])
    monkeypatch.setattr(cache_state, "_MOST_TOKENS", of_three, raising=False)
    found = check("cold", schedule.requests, made, 8)
    assert (found.checked, found.broken) == (3, "1 of 3 requests hit 2 tokens that nobody had sent in this run")
    monkeypatch.setattr(cache_state, "_MOST_TOKENS", of_three - 1, raising=False)
    assert check("cold", schedule.requests, made, 8) == CacheCheck(stated="cold", checked=2, broken=None)
