from __future__ import annotations

import asyncio
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabench.analysis import load_run
from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load import run_workload
from pabench.load.planning import plan
from pabench.load.schedule import Schedule, ScheduledRequest
from pabench.load.workload import Workload, known_workloads, load_workload
from pabench.probe import PRESETS, Ring
from pabench.stub import StubOptions, StubServer
from tests.load.support import CAPABILITIES, Examined, workload

SESSION = {"turns": {"law": "uniform", "min": 1, "max": 5}, "turn_tokens": {"law": "uniform", "min": 1, "max": 9}}


def planned(load: Workload, seed: int = 0, context: int = 512, preset: str = "tiny") -> Schedule:
    facts = EngineFacts("openai", "stub", context, capabilities=CAPABILITIES | {"beam", "priority"})
    return plan(load, seed, facts, PRESETS[preset], "p")


def sessions(schedule: Schedule) -> list[list[ScheduledRequest]]:
    return [list(turns) for _, turns in groupby(schedule.requests, key=lambda request: request.session)]


def ring(one: ScheduledRequest) -> Ring:
    assert isinstance(one.oracle, Ring)
    return one.oracle


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 5), st.sampled_from([0.0, 1.0]))
@settings(max_examples=30, deadline=None)
def test_requests_of_a_group_begin_alike_and_those_of_two_do_not(
    seed: int, tokens: int, groups: int, zipf: float
) -> None:
    load = workload(num_requests=24, shared_prefix={"tokens": tokens, "groups": groups, "zipf": zipf})
    schedule = planned(load, seed)
    heads = {ring(one).prompt[: tokens + 2] for one in schedule.requests}
    assert len(heads) <= groups
    assert len({head[1] for head in heads}) == len(heads)  # a salt each
    assert {one.prompt_tokens for one in schedule.requests} == {12 + tokens}
    assert all(len(ring(one).prompt) == one.prompt_tokens for one in schedule.requests)


def test_answers_read_shared_slots_and_their_own() -> None:
    load = workload(num_requests=60, shared_prefix={"tokens": 40})
    read = [set(ring(one).expected(8)) for one in planned(load).requests]
    shared = set(ring(planned(load).requests[0]).prompt[2:42])
    assert any(tokens <= shared for tokens in read)
    assert any(tokens - shared for tokens in read)


def test_popular_groups_come_more_often() -> None:
    load = workload(num_requests=2000, shared_prefix={"tokens": 8, "groups": 4, "zipf": 1.0})
    counts = sorted(np.unique([ring(one).salt for one in planned(load).requests], return_counts=True)[1] / 2000)[::-1]
    assert counts == pytest.approx(np.array([1, 1 / 2, 1 / 3, 1 / 4]) / (25 / 12), abs=0.04)


@given(st.integers(0, 2**31), st.booleans(), st.integers(60, 400), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_turn_goes_on_where_the_last_one_ended(seed: int, closed: bool, context: int, shared: bool) -> None:
    arrivals = {"kind": "closed", "users": 3} if closed else {"kind": "poisson", "rate_per_s": 9}
    load = workload(num_requests=30, session=SESSION, arrivals=arrivals,
                    **({"shared_prefix": {"tokens": 20}} if shared else {}))
    schedule = planned(load, seed, context)
    assert len(schedule.requests) + schedule.num_left_out == 30
    assert [one.index for one in schedule.requests] == list(range(len(schedule.requests)))
    for turns in sessions(schedule):
        assert [one.turn for one in turns] == list(range(len(turns)))
        assert len({one.user for one in turns}) == 1
        assert all(one.intended_s is None for one in turns[1:])
        for before, after in pairwise(turns):
            said = (*ring(before).prompt, *ring(before).expected(before.request.max_tokens))
            assert ring(after).prompt[: len(said)] == said
            assert len(ring(after).prompt) > len(said)
    assert all(one.prompt_tokens + one.request.max_tokens <= context for one in schedule.requests)


def test_users_of_sessions_get_like_work() -> None:
    load = workload(num_requests=400, arrivals={"kind": "closed", "users": 8},
                    session={"turns": {"law": "exponential", "mean": 6}, "turn_tokens": {"law": "fixed", "tokens": 4}})
    counts = np.unique([one.user for one in planned(load, context=100_000).requests], return_counts=True)[1]
    assert len(counts) == 8
    assert counts.max() < 1.5 * counts.min()


def test_words_are_shared_and_continued_too() -> None:
    load = workload(prompt="text", num_requests=20, session=SESSION, shared_prefix={"tokens": 9})
    schedule = plan(load, 0, EngineFacts("openai", "m", 512, capabilities=CAPABILITIES), None, "p")
    texts = [str(one.request.prompt) for one in schedule.requests]
    assert len({" ".join(text.split()[:9]) for text in texts}) == 1
    assert all(len(text.split()) == one.prompt_tokens for text, one in zip(texts, schedule.requests, strict=True))
    for turns in sessions(schedule):
        for before, after in pairwise(turns):
            assert str(after.request.prompt).startswith(f"{before.request.prompt} ")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="fork"):
        workload(prompt="fork", temperature=1.0, shared_prefix={"tokens": 8})
    with pytest.raises(UsageError, match="a shared prefix of 4000 tokens does not fit probe 'tiny'"):
        planned(workload(shared_prefix={"tokens": 4000}), context=10_000)
    with pytest.raises(UsageError, match="context of at least 506 tokens, the limit is 500"):
        planned(workload(shared_prefix={"tokens": 500}), context=500, preset="gqa")


@pytest.mark.parametrize("name", sorted(known_workloads()))
def test_every_workload_can_be_planned_on_the_probe(name: str) -> None:
    assert planned(load_workload(name), context=2048, preset="gqa").requests


def test_a_turn_waits_for_the_answer_before_it(tmp_path: Path) -> None:
    load = workload(num_requests=12, session=SESSION | {"think_s": 0.05},
                    arrivals={"kind": "poisson", "rate_per_s": 50})

    async def go() -> None:
        async with StubServer(StubOptions()) as server:
            await run_workload(Examined(), load, tmp_path / "run", url=server.url, label="stub")

    asyncio.run(go())
    rows = load_run(tmp_path / "run").requests
    for turns in sessions(planned(load, context=4096)):
        for before, after in pairwise(turns):
            assert rows.loc[after.index, "intended_s"] - rows.loc[before.index, "end_s"] == pytest.approx(0.05)
            assert rows.loc[after.index, "sent_s"] >= rows.loc[before.index, "end_s"] + 0.05
