"""Beams share what they can, free what they can, and wait where there is no room."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabench.errors import UsageError
from pabench.probe import draw_fork
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.memory.allocator import blocks_for
from reference_engine.scheduling.sequence import Sequence, Status
from tests.reference_engine.beam.support import answers, beams, prompt_of
from tests.reference_engine.helpers import SPEC, assert_idle, drain, greedy, ids


def blocks_used(engine):
    return engine.allocator.num_blocks - engine.allocator.num_free_blocks


def distinct_prefixes(seqs, block_size):
    """Blocks that beams need if they share all that they can: contents depend on all tokens before a block's end."""
    return len({
        tuple(seq.tokens[: min(end, seq.num_computed)])
        for seq in seqs
        for end in range(block_size, blocks_for(seq.num_computed, block_size) * block_size + 1, block_size)
    })


def test_two_branches_share_all_full_blocks_of_the_prompt(make_engine):
    engine = make_engine(block_size=16)
    fork = draw_fork(SPEC, np.random.default_rng(3), 30)  # 65 prompt tokens: four full blocks and one slot
    engine.add(fork.prompt, beams(31, 2, ignore_eos=True))
    engine.step()
    assert blocks_used(engine) == 5  # two beams, nothing of their own yet
    engine.step()
    assert blocks_used(engine) == 4 + 2
    for _ in range(20):
        engine.step()
    assert blocks_used(engine) == 4 + 2 * 2


@pytest.mark.parametrize("width", [2, 3, 5, 8])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("caching", [True, False])
def test_beams_share_all_that_they_can_at_every_step(serve, width, block_size, caching):
    """So beams that die free their blocks at once, and a fork copies one block at most."""
    engine = serve(block_size=block_size, num_blocks=2048 // block_size, prefix_caching=caching)
    request = engine.add(prompt_of(21, width), beams(40, width, ignore_eos=True))
    steps, saved = 0, 0
    while True:
        engine.step()
        if not engine.has_work:
            break
        assert len(request.sequences) == sum(seq.width for seq in request.sequences) == width
        assert blocks_used(engine) == distinct_prefixes(request.sequences, block_size)
        saved += sum(blocks_for(seq.num_computed, block_size) for seq in request.sequences) - blocks_used(engine)
        steps += 1
    assert steps == 39
    assert saved > 0
    assert_idle(engine)


def test_abort_frees_all_and_harms_nobody(serve):
    for steps in (0, 1, 2, 5, 11):
        engine = serve(max_num_batched_tokens=8, max_num_seqs=8, num_blocks=40, preemption="swap")
        doomed = engine.add(prompt_of(30, 1), beams(30, 4, n=2))
        kept = engine.add(prompt_of(20, 2), beams(10, 3, ignore_eos=True))
        for _ in range(steps):
            assert engine.step() == []
        engine.abort(doomed)
        engine.abort(doomed)
        assert engine.stats.finished["abort"] == doomed.params.n
        made = drain(engine)
        assert list(made) == [kept.id]
        assert {len(outputs) for outputs in made[kept.id].values()} == {10}
        assert_idle(engine)


def test_one_beam_after_another_where_only_one_has_room(serve):
    """Admission would refuse such a request; the search ends, and ends right, all the same."""
    prompt, params = prompt_of(9, 5), beams(15, 5)
    engine = serve()
    expected = answers(engine, engine.add(prompt, params))
    for kv in ({"preemption": "recompute"}, {"preemption": "swap"}, {"preemption": "wait"},
               {"kv": "contiguous", "reservation": "oracle", "num_blocks": 8}):
        engine = serve(**{"num_blocks": blocks_for(9 + 14, 4), **kv})
        with pytest.raises(UsageError, match="5 sequences of 9 prompt"):
            engine.add(prompt, params)
        request = serve().prepare(prompt, params)
        engine.enqueue(request)
        assert answers(engine, request) == expected
        assert engine.scheduler.stats.preemptions > 10


@pytest.mark.parametrize("mode", ["recompute", "swap", "wait"])
@pytest.mark.parametrize("memory", [
    {"prefix_caching": True}, {"prefix_caching": False}, {"kv": "contiguous", "reservation": "oracle"},
    {"kv": "contiguous", "reservation": "pow2"},
])
def test_requests_that_cannot_all_be_resident_all_end(serve, mode, memory):
    wanted = [(prompt_of(7 + seed, seed), beams(25, 4, ignore_eos=True)) for seed in range(4)]
    wanted.append((prompt_of(12, 9), greedy(20)))
    expected = []
    for prompt, params in wanted:
        engine = serve()
        expected.append(answers(engine, engine.add(prompt, params)))
    most = 2 + 4 * (blocks_for(34, 4) - 2)  # what the longest needs if its beams share the prompt alone
    engine = serve(**memory, preemption=mode, max_num_seqs=16,
                   num_blocks=64 if memory.get("kv") == "contiguous" else most)
    requests = [engine.add(*request) for request in wanted]
    made = drain(engine)
    assert [[ids(made[r.id][rank]) for rank in range(r.params.n)] for r in requests] == expected
    assert engine.scheduler.stats.preemptions > 0
    assert_idle(engine)


WANTED = st.lists(
    st.tuples(
        st.integers(1, 24),                      # prompt tokens
        st.integers(1, 20),                      # output tokens
        st.sampled_from([0, 2, 2, 3, 4]),        # beam width; 0: greedy
        st.integers(-1, 1),                      # priority
        st.integers(0, 4),                       # steps to take before the next request comes
        st.sampled_from([False, False, False, True]),  # abort it after those steps
    ),
    min_size=1, max_size=5,
)
CONFIGS = st.fixed_dictionaries({
    "kv": st.sampled_from(["paged", "paged", "contiguous"]),
    "reservation": st.sampled_from(["max", "pow2", "oracle"]),
    "block_size": st.sampled_from([1, 4, 8]),
    "prefix_caching": st.booleans(),
    "chunked_prefill": st.booleans(),
    "batching": st.sampled_from(["continuous", "continuous", "static"]),
    "preemption": st.sampled_from(["recompute", "swap", "wait"]),
    "num_swap_blocks": st.sampled_from([1, 8, 64]),
    "policy": st.sampled_from(["fcfs", "priority"]),
    "speculation": st.sampled_from(["off", "ngram"]),
    "max_num_seqs": st.sampled_from([4, 6]),
})
_ALONE = {}  # answers of requests that had an engine to themselves


@settings(deadline=None, max_examples=40)
@given(config=CONFIGS, wanted=WANTED, budget=st.sampled_from([6, 48]), spare=st.integers(0, 3))
def test_answers_are_the_same_under_any_mixture_of_mechanisms(llama, config, wanted, budget, spare):
    def make(**more):
        return Engine(*llama[1:], EngineConfig(**{"max_model_len": 48, "check_integrity": True, **more}))

    size = config["block_size"]
    needs = [
        (length // size) + max(width, 1) * (blocks_for(length + most - 1, size) - length // size)
        for length, most, width, *_ in wanted
    ]
    num_blocks = max(needs) + spare if config["kv"] == "paged" else 4 * 64 // size
    engine = make(**config, num_blocks=num_blocks, max_num_batched_tokens=budget if config["chunked_prefill"] else 48)
    expected, outputs = {}, {}

    def take(step):
        for request, output in step:
            outputs.setdefault(request.id, {}).setdefault(output.index, []).append(output.token_id)

    for length, most, width, priority, steps, abort in wanted:
        params = beams(most, width) if width else greedy(most)
        prompt = prompt_of(length, length)
        if (length, params) not in _ALONE:
            alone = make(num_blocks=256)
            _ALONE[length, params] = answers(alone, alone.add(prompt, params))
        request = engine.add(prompt, params, priority=priority)
        for _ in range(steps):
            take(engine.step())
        if abort:
            engine.abort(request)
        else:
            expected[request.id] = _ALONE[length, params]
    for _ in range(5000):
        if not engine.has_work:
            break
        take(engine.step())
        assert sum(seq.width for seq in engine.scheduler.running) <= config["max_num_seqs"]
    assert {id_: [outputs[id_][rank] for rank in range(len(a))] for id_, a in expected.items()} == expected
    assert_idle(engine)


def test_a_fork_that_finds_no_seat_waits(serve):
    engine = serve(max_num_seqs=2)
    first, second = engine.add(prompt_of(7, 0), greedy(4)), engine.add(prompt_of(7, 1), greedy(4))
    engine.step()
    (parent,) = first.sequences
    children = [Sequence(first, index, list(parent.tokens), 0) for index in (1, 2)]
    assert engine.scheduler.fork(parent, children[0]) == []
    engine.abort(second)
    assert engine.scheduler.fork(parent, children[1]) == []
    assert [child.status for child in children] == [Status.WAITING, Status.RUNNING]
    engine.scheduler.check_integrity()
