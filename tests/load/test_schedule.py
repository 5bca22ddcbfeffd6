from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load.draws import draw_arrivals
from pabench.load.planning import plan
from pabench.load.runner import digest
from pabench.load.schedule import Schedule
from pabench.load.workload import Workload, known_workloads, load_workload
from pabench.probe import PRESETS, SEP, Fork, Ring
from tests.load.support import CAPABILITIES, workload

FACTS = EngineFacts("openai", "stub", 512, capabilities=CAPABILITIES)


def planned(load: Workload, seed: int = 0, facts: EngineFacts = FACTS) -> Schedule:
    return plan(load, seed, facts, PRESETS["tiny"], "p")


def starts(seed: int, kind: str, rate: float, count: int) -> np.ndarray:
    load = workload(arrivals={"kind": kind, "rate_per_s": rate}, num_requests=count)
    return np.asarray(draw_arrivals(load, np.random.default_rng(seed)), dtype=float)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_poisson_arrivals_are_poisson(seed: int) -> None:
    times = starts(seed, "poisson", 50.0, 20_000)
    counts = np.bincount((times[times < 380] // 1.0).astype(int), minlength=380)
    # Index of dispersion 1, its deviation over m windows sqrt(2 / m); six of them either way.
    assert abs(counts.var(ddof=1) / counts.mean() - 1) < 6 * np.sqrt(2 / 380)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert (gaps > 2 / 50).mean() == pytest.approx(np.exp(-2), abs=0.02)  # exponential, not merely irregular


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 5000))
@settings(max_examples=25, deadline=None)
def test_constant_arrivals_are_evenly_spaced_and_absolute(seed: int, rate: float) -> None:
    times = starts(seed, "constant", rate, 1000)
    assert np.allclose(times, np.arange(1000) / rate)


@given(st.integers(0, 2**31), st.sampled_from(["probe", "fork", "text"]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_schedule_and_another_another(seed: int, prompt: str, closed: bool) -> None:
    load = workload(
        prompt=prompt, temperature=1.0 if prompt == "fork" else 0.0, cancel_share=0.3,
        prompt_tokens={"law": "exponential", "mean": 30}, output_tokens={"law": "gamma", "mean": 20, "shape": 0.5},
        arrivals={"kind": "closed", "users": 3} if closed else {"kind": "poisson", "rate_per_s": 9},
        num_requests=12,
    )
    assert planned(load, seed) == planned(load, seed)
    assert digest(planned(load, seed)) == digest(planned(load, seed))
    assert digest(planned(load, seed)) != digest(planned(load, seed + 1))


@given(st.integers(0, 2**31), st.integers(16, 600), st.sampled_from(["probe", "fork", "text"]))
@settings(max_examples=30, deadline=None)
def test_no_request_exceeds_the_engines_context(seed: int, context: int, prompt: str) -> None:
    load = workload(
        prompt=prompt, temperature=1.0 if prompt == "fork" else 0.0, num_requests=30,
        prompt_tokens={"law": "gamma", "mean": 200, "shape": 0.3},
        output_tokens={"law": "exponential", "mean": 300, "min": 4},
    )
    schedule = planned(load, seed, EngineFacts("openai", "stub", context, capabilities=CAPABILITIES))
    for one in schedule.requests:
        assert one.prompt_tokens + one.request.max_tokens <= context
        assert one.request.max_tokens >= 1
        if isinstance(one.request.prompt, tuple):
            assert one.prompt_tokens == len(one.request.prompt)


def test_prompts_have_exactly_the_length_drawn_and_start_with_the_separator() -> None:
    schedule = planned(workload(prompt_tokens={"law": "uniform", "min": 5, "max": 90}, num_requests=40))
    for one in schedule.requests:
        assert isinstance(one.oracle, Ring)
        assert len(one.oracle.prompt) == one.prompt_tokens
        assert one.oracle.prompt[0] == SEP
    assert len({one.prompt_tokens for one in schedule.requests}) > 10


def test_users_at_the_same_time_never_share_a_token_or_a_salt() -> None:
    schedule = planned(workload(
        num_requests=64, arrivals={"kind": "closed", "users": 8},
        prompt_tokens={"law": "uniform", "min": 8, "max": 200}))
    assert schedule.isolation == "tokens"
    tokens: dict[int, set[int]] = {}
    salts: dict[int, set[int]] = {}
    for one in schedule.requests:
        assert one.user is not None
        assert isinstance(one.oracle, Ring)
        tokens.setdefault(one.user, set()).update(one.oracle.tokens)
        salts.setdefault(one.user, set()).add(one.oracle.salt)
    for found in (tokens, salts):
        assert sum(map(len, found.values())) == len(set.union(*found.values()))


def test_neighbours_of_an_open_schedule_never_share_a_token() -> None:
    schedule = planned(workload(arrivals={"kind": "poisson", "rate_per_s": 5}, num_requests=60,
                                prompt_tokens={"law": "fixed", "tokens": 203}))
    rings = [one.oracle for one in schedule.requests]
    for first, second in pairwise(rings):
        assert isinstance(first, Ring)
        assert isinstance(second, Ring)
        assert not set(first.tokens) & set(second.tokens)


def test_a_crowd_too_large_for_the_vocabulary_gets_distinct_salts() -> None:
    schedule = planned(workload(num_requests=40, arrivals={"kind": "closed", "users": 40},
                                prompt_tokens={"law": "fixed", "tokens": 400}))
    assert schedule.isolation == "salts"
    assert len({one.oracle.salt for one in schedule.requests if one.oracle is not None}) == 40


@pytest.mark.parametrize(("count", "arrivals", "tokens", "isolation"), [
    (18, {"kind": "poisson", "rate_per_s": 5}, 203, "tokens"),    # a lane of 200 tokens for each of them
    (40, {"kind": "poisson", "rate_per_s": 5}, 203, "salts"),     # lanes are used again, salts are not
    (400, {"kind": "constant", "rate_per_s": 5}, 203, "chance"),  # so are salts
    (400, {"kind": "closed", "users": 10}, 203, "tokens"),        # ten users have lanes of their own however many
    (400, {"kind": "closed", "users": 30}, 403, "salts"),
    (400, {"kind": "closed", "users": 300}, 403, "chance"),
])
def test_isolation_is_claimed_only_where_it_holds_for_any_two_requests(
    count: int, arrivals: dict[str, object], tokens: int, isolation: str
) -> None:
    lengths = {"law": "fixed", "tokens": tokens}
    schedule = planned(workload(num_requests=count, arrivals=arrivals, prompt_tokens=lengths))
    assert schedule.isolation == isolation
    found = [(one.user if one.user is not None else one.index, one.oracle) for one in schedule.requests]
    for name, uses in (("tokens", lambda ring: ring.tokens), ("salts", lambda ring: (ring.salt,))):
        owners: dict[int, set[int]] = {}
        for owner, ring in found:
            for used in uses(ring):
                owners.setdefault(used, set()).add(owner)
        assert (max(map(len, owners.values())) == 1) or isolation != name


def test_forks_for_more_users_than_salts_claim_none() -> None:
    fields = {"prompt": "fork", "temperature": 1.0, "num_requests": 300,
              "prompt_tokens": {"law": "fixed", "tokens": 25}}
    assert planned(workload(**fields, arrivals={"kind": "closed", "users": 8})).isolation == "salts"
    assert planned(workload(**fields, arrivals={"kind": "closed", "users": 300})).isolation == "chance"


def test_no_prompt_repeats_and_warm_ups_have_their_own() -> None:
    schedule = planned(workload(num_requests=60, warmup_requests=8))
    prompts = [one.request.prompt for one in (*schedule.requests, *schedule.warmups)]
    heads = {prompt[:4] for prompt in prompts}
    assert len(set(prompts)) == len(prompts) == 68
    assert len(heads) == 68  # not even one block of four tokens in common


def test_a_million_rings_hold_each_id_once() -> None:
    load = workload(num_requests=200, prompt_tokens={"law": "fixed", "tokens": 128})
    held = [token for request in planned(load).requests for token in request.request.prompt[2:]]
    assert len({id(token) for token in held}) == len(set(held)) < len(held) / 5


def test_forks_draw_n_samples_with_seeds_of_their_own() -> None:
    schedule = planned(workload(prompt="fork", temperature=1.0, n=4, prompt_tokens={"law": "fixed", "tokens": 31}))
    assert all(isinstance(one.oracle, Fork) and one.prompt_tokens == 31 for one in schedule.requests)
    assert len({one.request.seed for one in schedule.requests}) == 6


@pytest.mark.parametrize(("fields", "says"), [
    ({"num_requests": 12}, r"64 users, and only 12 requests for them: raise num_requests \(--num-requests\)"),
    ({"num_requests": 160, "session": {"turns": {"law": "fixed", "tokens": 4},
                                       "turn_tokens": {"law": "fixed", "tokens": 8}}},
     r"64 users, and only 40 sessions \(160 requests\)"),
])
def test_users_without_anything_to_send_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        planned(workload(**fields, arrivals={"kind": "closed", "users": 64}))


@pytest.mark.parametrize("name", list(known_workloads()))
def test_the_workloads_that_ship_have_work_for_every_user(name: str) -> None:
    load = load_workload(name)
    facts = EngineFacts("vllm", "probe", 4096, capabilities=CAPABILITIES | {"beam", "priority", "cached_tokens"})
    for seed in range(3):
        schedule = plan(load, seed, facts, PRESETS["long"], "p")
        assert load.users is None or len({request.user for request in schedule.requests}) == load.users


def test_queues_hold_every_request_once_and_users_get_like_work() -> None:
    load = workload(num_requests=120, arrivals={"kind": "closed", "users": 6},
                    output_tokens={"law": "exponential", "mean": 60})
    queues = [lane.requests for lane in planned(load).lanes()]
    assert sorted(one.index for queue in queues for one in queue) == list(range(120))
    work = [sum(one.request.max_tokens for one in queue) for queue in queues]
    assert max(work) < 1.5 * min(work)


def test_cancel_share_is_the_share_of_requests_cut() -> None:
    schedule = planned(workload(num_requests=400, cancel_share=0.25, cancel_after_tokens=3))
    cut = [one for one in schedule.requests if one.cancel_after_tokens is not None]
    assert 70 <= len(cut) <= 130
    assert {one.cancel_after_tokens for one in cut} == {3}


URGENT = [{"priority": -1, "share": 0.25}, {"priority": 5, "share": 0.75}]
ABLE = EngineFacts("reference", "stub", 512, capabilities=CAPABILITIES | {"priority"})


def test_priorities_are_drawn_by_their_shares_and_leave_all_else_as_it_was() -> None:
    plain = planned(workload(num_requests=400), facts=ABLE)
    mixed = planned(workload(num_requests=400, priorities=URGENT), facts=ABLE)
    found = [one.request.priority for one in mixed.requests]
    assert 70 <= found.count(-1) <= 130
    assert found.count(-1) + found.count(5) == 400
    assert {one.request.priority for one in (*plain.requests, *mixed.warmups)} <= {None}
    assert [replace(one, request=replace(one.request, priority=None)) for one in mixed.requests] == list(plain.requests)
    assert digest(mixed) != digest(plain)
    assert found == [one.request.priority for one in planned(workload(num_requests=400, priorities=URGENT),
                                                             facts=ABLE).requests]


def test_all_turns_of_a_session_are_as_urgent() -> None:
    turns = {"turns": {"law": "fixed", "tokens": 3}, "turn_tokens": {"law": "fixed", "tokens": 6}}
    load = workload(num_requests=60, session=turns, priorities=URGENT, arrivals={"kind": "poisson", "rate_per_s": 9})
    schedule = planned(load, facts=ABLE)
    each = [{one.request.priority for one in lane.requests} for lane in schedule.lanes()]  # one a session: it is open
    assert all(len(found) == 1 for found in each)
    assert len(set().union(*each)) == 2


def test_digests_are_those_of_before_there_were_priorities() -> None:
    load = workload(num_requests=3, arrivals={"kind": "poisson", "rate_per_s": 5})
    assert digest(planned(load, 7)) == "733b7ebaf8cda8374a2c8f91abd3754e7a0ca90a908807b8f0d971e140b925fd"


def test_what_an_engine_cannot_do_is_said_before_work_starts() -> None:
    with pytest.raises(UsageError, match=r"asks for verified prompts.*pabench probe build"):
        plan(workload(), 0, FACTS, None, "p")
    poor = EngineFacts("transformers", "m", 512, capabilities=frozenset({"stream"}))
    with pytest.raises(UsageError, match="needs n, sampling"):
        plan(workload(prompt="fork", n=2, temperature=1.0), 0, poor, PRESETS["tiny"], "p")
    with pytest.raises(UsageError, match="needs priority, which dialect 'openai'"):
        planned(workload(priorities=URGENT))
    with pytest.raises(UsageError, match="context of at least 6 tokens, the limit is 5"):
        planned(workload(), facts=EngineFacts("openai", "m", 5, capabilities=CAPABILITIES))
