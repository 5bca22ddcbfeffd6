"""Each mechanism does what its switch says, alone and mixed with all others, and no answer changes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pabench.errors import UsageError
from tests.reference_engine.helpers import assert_exact, assert_idle, drain, greedy, ids, rings

TIGHT = {"num_blocks": 24, "block_size": 8, "max_num_seqs": 8}


def serve(engine, prompts, length, **request):
    requests = [engine.add(ring.prompt, greedy(length), **request) for ring in prompts]
    made = drain(engine)
    for ring, req in zip(prompts, requests, strict=True):
        assert_exact(ring, ids(made[req.id][0]), length)
    assert_idle(engine)
    return requests


# Any mixture of switches.

CONFIGS = st.fixed_dictionaries({
    "kv": st.sampled_from(["paged", "paged", "contiguous"]),
    "reservation": st.sampled_from(["max", "pow2", "oracle"]),
    "block_size": st.sampled_from([1, 4, 8, 16]),
    "prefix_caching": st.booleans(),
    "chunked_prefill": st.booleans(),
    "batching": st.sampled_from(["continuous", "continuous", "static"]),
    "preemption": st.sampled_from(["recompute", "swap", "wait"]),
    "num_swap_blocks": st.sampled_from([1, 8, 64]),
    "policy": st.sampled_from(["fcfs", "priority"]),
    "speculation": st.sampled_from(["off", "ngram"]),
    "enforce_eager": st.booleans(),
    "max_num_seqs": st.sampled_from([1, 3, 8]),
})
REQUESTS = st.lists(
    st.tuples(
        st.integers(15, 40),                # length of the ring
        st.integers(1, 40),                 # tokens to generate
        st.sampled_from([1, 1, 2, 3]),      # n
        st.integers(-2, 2),                 # priority
        st.sampled_from([None, "a", "b"]),  # salt
        st.integers(0, 5),                  # steps to take before the next request comes
        st.sampled_from([False, False, False, True]),  # abort it after those steps
    ),
    min_size=1, max_size=7,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(config=CONFIGS, requests=REQUESTS, budget=st.sampled_from([8, 24, 96]), spare=st.integers(0, 4))
def test_answers_are_exact_under_any_mixture_of_mechanisms(make_engine, config, requests, budget, spare):
    """The pool is as small as the largest request allows, or a little larger."""
    size = config["block_size"]
    longest = max(-(-(length + 3 + made) // size) for length, made, *_ in requests)
    num_blocks = (longest + 1) * min(3, config["max_num_seqs"]) + spare
    if config["kv"] == "contiguous":
        num_blocks = 1 << (4 * (96 // size) - 1).bit_length()  # room for three reservations in powers of two
    config = config | {"num_blocks": num_blocks, "max_model_len": 96,
                       "max_num_batched_tokens": budget if config["chunked_prefill"] else 96}
    engine = make_engine(**config)
    prompts = rings(*(length for length, *_ in requests), seed=len(requests))
    expected, outputs = {}, {}

    def take(step):
        for request, output in step:
            outputs.setdefault(request.id, {}).setdefault(output.index, []).append(output.token_id)

    for ring, (_, length, n, priority, salt, steps, abort) in zip(prompts, requests, strict=True):
        n = min(n, config["max_num_seqs"])
        request = engine.add(ring.prompt, greedy(length, n=n), priority=priority, cache_salt=salt)
        for _ in range(steps):
            take(engine.step())
        if abort:
            engine.abort(request)
        else:
            expected[request.id] = (ring, length, n)
    for _ in range(5000):
        if not engine.has_work:
            break
        take(engine.step())
    for request_id, (ring, length, n) in expected.items():
        assert sorted(outputs[request_id]) == list(range(n))
        for tokens in outputs[request_id].values():
            assert_exact(ring, tokens, length)
    assert_idle(engine)


# Prefix caching.

def test_a_second_send_finds_all_full_blocks_but_the_last_token(make_engine):
    engine = make_engine()
    (ring,) = rings(61)  # 64 prompt tokens: four full blocks
    (cold,) = serve(engine, [ring], 140)  # two laps: keys written behind a hit stand at the right positions
    (warm,) = serve(engine, [ring], 140)
    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, 48)
    assert (engine.scheduler.stats.prefix_queries, engine.scheduler.stats.prefix_hits) == (128, 48)
    engine.allocator.reset_prefix_cache()
    (reset,) = serve(engine, [ring], 10)
    assert reset.num_cached_tokens == 0


def test_generated_tokens_are_found_too(make_engine):
    engine = make_engine()
    (ring,) = rings(20)  # 23 prompt tokens
    serve(engine, [ring], 60)
    longer = ring.prompt + tuple(ring.expected(30))
    request = engine.add(longer, greedy(5))
    assert ids(drain(engine)[request.id][0]) == ring.expected(35)[30:]
    assert request.num_cached_tokens == 48


def test_prompts_that_part_in_a_block_share_the_blocks_before_it(make_engine):
    engine = make_engine()
    (ring,) = rings(61)
    serve(engine, [ring], 8)
    other = (*ring.prompt[:40], *ring.prompt[41:])
    request = engine.add(other, greedy(1))
    drain(engine)
    assert request.num_cached_tokens == 32


def test_salts_do_not_share_and_the_switch_turns_it_off(make_engine):
    engine = make_engine()
    (ring,) = rings(61)
    serve(engine, [ring], 8, cache_salt="a")
    assert serve(engine, [ring], 8, cache_salt="b")[0].num_cached_tokens == 0
    assert serve(engine, [ring], 8)[0].num_cached_tokens == 0
    assert serve(engine, [ring], 8, cache_salt="a")[0].num_cached_tokens == 48
    off = make_engine(prefix_caching=False)
    serve(off, [ring], 8)
    assert serve(off, [ring], 8)[0].num_cached_tokens == 0


def test_what_a_running_sequence_has_computed_is_shared_at_once(make_engine):
    engine = make_engine()
    (ring,) = rings(125)  # 128 prompt tokens
    first = engine.add(ring.prompt, greedy(20))
    engine.step()
    before = engine.allocator.num_free_blocks
    second = engine.add(ring.prompt, greedy(20))
    begun = [output.token_id for request, output in engine.step() if request is second]
    assert second.num_cached_tokens == 112
    assert before - engine.allocator.num_free_blocks <= 2 + 1  # a block of its own each; the first may have grown
    made = drain(engine)
    assert_exact(ring, begun + ids(made[second.id][0]), 20)
    assert first.num_cached_tokens == 0


# Preemption.

@pytest.mark.parametrize("mode", ["recompute", "swap", "wait"])
@pytest.mark.parametrize("caching", [True, False])
def test_a_tiny_pool_loses_nothing_in_any_mode(make_engine, mode, caching):
    engine = make_engine(**TIGHT, preemption=mode, prefix_caching=caching)
    serve(engine, rings(*[15 + i for i in range(12)]), 60)
    stats = engine.scheduler.stats
    assert stats.preemptions > 0
    assert (stats.swapped_out_blocks > 0) == (mode == "swap")
    assert stats.swapped_in_blocks <= stats.swapped_out_blocks
    if mode == "swap":
        assert engine.scheduler.swap.num_used_blocks == 0
        assert stats.recomputed_tokens == 0
    else:
        assert stats.recomputed_tokens > 0


def test_waiting_preempts_only_when_all_are_stuck(make_engine):
    preemptions = {}
    for mode in ("recompute", "wait"):
        engine = make_engine(**TIGHT, preemption=mode, prefix_caching=False)
        serve(engine, rings(*[15 + 3 * i for i in range(8)]), 40)
        preemptions[mode] = engine.scheduler.stats.preemptions
    assert preemptions["wait"] < preemptions["recompute"]


def test_when_host_memory_is_full_too_the_rest_is_computed_again(make_engine):
    engine = make_engine(**TIGHT, preemption="swap", num_swap_blocks=6, prefix_caching=False)
    serve(engine, rings(*[15 + i for i in range(12)]), 60)
    assert engine.scheduler.stats.swapped_out_blocks > 0
    assert engine.scheduler.stats.recomputed_tokens > 0


def test_a_swapped_request_can_be_aborted(make_engine):
    engine = make_engine(**TIGHT, preemption="swap")
    requests = [engine.add(ring.prompt, greedy(60)) for ring in rings(*[15] * 8)]
    while not engine.scheduler.swap.num_used_blocks:
        engine.step()
    for request in requests:
        engine.abort(request)
    assert engine.scheduler.swap.num_used_blocks == 0
    assert_idle(engine)


# Order.

def ends(engine):
    """Request ids in the order in which they end."""
    order = []
    while engine.has_work:
        order += [request.id for request, output in engine.step() if output.finish_reason]
    return order


def test_priority_goes_first_and_equals_stay_in_order(make_engine):
    engine = make_engine(policy="priority", max_num_seqs=1)
    low, high, equal = (
        engine.add(ring.prompt, greedy(5), priority=p) for ring, p in zip(rings(15, 16, 17), (1, -1, 1), strict=True)
    )
    assert ends(engine) == [high.id, low.id, equal.id]
    engine = make_engine(policy="fcfs", max_num_seqs=1)
    requests = [engine.add(ring.prompt, greedy(5), priority=-i) for i, ring in enumerate(rings(15, 16))]
    assert ends(engine) == [request.id for request in requests]


def test_the_least_important_is_preempted(make_engine):
    engine = make_engine(**TIGHT, policy="priority")
    prompts = rings(*[15] * 6)
    requests = [engine.add(ring.prompt, greedy(60), priority=-i) for i, ring in enumerate(prompts)]
    assert ends(engine)[0] == requests[-1].id
    assert engine.scheduler.stats.preemptions > 0


# Batching.

def test_static_batching_lets_nobody_in_before_the_batch_has_ended(make_engine):
    engine = make_engine(batching="static", max_num_seqs=4)
    lengths = [5, 30, 5, 5, 7, 7]
    requests = [
        engine.add(ring.prompt, greedy(length)) for ring, length in zip(rings(*[15] * 6), lengths, strict=True)
    ]
    order = ends(engine)
    assert order[3] == requests[1].id
    assert set(order[4:]) == {requests[4].id, requests[5].id}


def test_continuous_batching_takes_fewer_steps(make_engine):
    steps = {}
    for batching in ("static", "continuous"):
        engine = make_engine(batching=batching, max_num_seqs=4)
        for i, ring in enumerate(rings(*[15] * 12)):
            engine.add(ring.prompt, greedy(40 if i % 4 == 0 else 4))
        steps[batching] = 0
        while engine.has_work:
            engine.step()
            steps[batching] += 1
    assert steps["continuous"] < 0.6 * steps["static"]


def test_without_chunks_a_prompt_is_computed_whole_and_beside_no_decode(make_engine):
    sizes = {}
    for chunked in (True, False):
        engine = make_engine(chunked_prefill=chunked, max_num_batched_tokens=512)
        schedule = engine.scheduler.schedule
        seen = sizes[chunked] = []

        def watch(schedule=schedule, seen=seen):
            step = schedule()
            seen.append(tuple(step.num_new))
            return step

        engine.scheduler.schedule = watch
        first, second = rings(20, 300)
        engine.add(first.prompt, greedy(10))
        engine.step()
        engine.add(second.prompt, greedy(3))
        drain(engine)
    assert (1, 303) in sizes[True]
    assert all(len(step) == 1 or set(step) == {1} for step in sizes[False])
    assert (303,) in sizes[False]
    engine = make_engine(max_num_batched_tokens=64)
    (ring,) = rings(300)
    serve(engine, [ring], 20)


# Switches that contradict each other.

@pytest.mark.parametrize(("config", "message"), [
    ({"kv": "heap"}, "kv is 'heap', expected one of paged, contiguous"),
    ({"preemption": "none", "policy": "random"}, "preemption is 'none'.*policy is 'random'"),
    ({"chunked_prefill": False, "max_num_batched_tokens": 256}, "a step must hold the longest prompt"),
    ({"speculation": "draft"}, "the draft model is None"),
    ({"num_swap_blocks": 0}, "num_swap_blocks is 0"),
])
def test_switches_that_make_no_sense_are_refused(make_engine, config, message):
    with pytest.raises(UsageError, match=message):
        make_engine(**config)
