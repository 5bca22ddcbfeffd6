"""On the probe: what is guessed is exact under any mixture of mechanisms, and preempts nobody."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pabench.probe import Ring, check_answer, draw_fork
from reference_engine.sampling.ngram import LONGEST, NgramIndex
from reference_engine.scheduling.sequence import SamplingParams
from tests.reference_engine.helpers import SPEC, assert_exact, assert_idle, drain, greedy, ids, rings
from tests.reference_engine.speculation.support import assert_all_accepted, serve


def search(tokens, count):
    """What the index should propose, found by looking at the whole text."""
    for n in range(LONGEST, 0, -1):
        for at in range(len(tokens) - 1, n - 1, -1):
            if len(tokens) > n and tokens[at - n : at] == tokens[-n:]:
                text = list(tokens)
                for i in range(count):
                    text.append(text[at + i])
                return text[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.lists(st.integers(1, 9), min_size=1), st.integers(1, 6))
def test_the_index_proposes_what_a_search_of_the_whole_text_finds(tokens, pieces, count):
    index, end = NgramIndex(), 0
    for piece in itertools.cycle(pieces):
        end = min(end + piece, len(tokens))
        assert index.propose(tokens[:end], count) == search(tokens[:end], count)
        if end == len(tokens):
            return


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    how=st.sampled_from(["ngram", "probe", "probe-other"]),
    config=st.fixed_dictionaries({
        "kv": st.sampled_from(["paged", "paged", "contiguous"]),
        "block_size": st.sampled_from([1, 4, 8, 16]),
        "prefix_caching": st.booleans(),
        "chunked_prefill": st.booleans(),
        "batching": st.sampled_from(["continuous", "continuous", "static"]),
        "preemption": st.sampled_from(["recompute", "swap", "wait"]),
        "num_swap_blocks": st.sampled_from([4, 64]),
        "max_num_seqs": st.sampled_from([1, 3, 8]),
        "num_speculative_tokens": st.integers(1, 6),
    }),
    requests=st.lists(
        st.tuples(st.integers(15, 40), st.integers(1, 40), st.sampled_from([1, 1, 3]), st.integers(0, 4)),
        min_size=1, max_size=6,
    ),
    budget=st.sampled_from([8, 24, 96]), spare=st.integers(0, 6),
)
def test_rings_are_exact_under_any_mixture(on_probe, how, config, requests, budget, spare):
    """Each ring is sent twice, so that the second may find its prefix. The pool is about as small as can be."""
    size = config["block_size"]
    longest = max(-(-(length + 3 + made) // size) for length, made, *_ in requests)
    num_blocks = (longest + 1) * min(3, config["max_num_seqs"]) + spare
    if config["kv"] == "contiguous":
        num_blocks = 4 * 128 // size
    engine = on_probe(how, **config, num_blocks=num_blocks, max_model_len=96,
                      max_num_batched_tokens=budget if config["chunked_prefill"] else 96)
    expected, outputs = {}, {}
    drawn = rings(*(length for length, *_ in requests), seed=len(requests))
    for ring, (_, length, n, steps) in [*zip(drawn, requests, strict=True)] * 2:
        n = min(n, config["max_num_seqs"])
        expected[engine.add(ring.prompt, greedy(length, n=n)).id] = (ring, length, n)
        for request, output in itertools.chain.from_iterable(engine.step() for _ in range(steps)):
            outputs.setdefault(request.id, {}).setdefault(output.index, []).append(output)
    for request_id, choices in drain(engine).items():
        for index, more in choices.items():
            outputs.setdefault(request_id, {}).setdefault(index, []).extend(more)
    for request_id, (ring, length, n) in expected.items():
        assert sorted(outputs[request_id]) == list(range(n))
        for made in outputs[request_id].values():
            assert_exact(ring, ids(made), length)
    assert_idle(engine)
    if how == "probe":
        assert engine.stats.accepted_draft_tokens == engine.stats.draft_tokens


@pytest.mark.parametrize("how", ["ngram", "probe", "probe-other"])
@pytest.mark.parametrize("kv", ["paged", "contiguous"])
def test_samples_follow_their_branch_of_a_fork(on_probe, how, kv):
    fork = draw_fork(SPEC, np.random.default_rng(3), 21)
    params = SamplingParams(max_tokens=40, n=8, temperature=1.0, seed=5, ignore_eos=True)
    (plain,) = serve(on_probe("off", kv=kv, num_blocks=1024), [(fork.prompt, params)])
    engine = on_probe(how, kv=kv, num_blocks=1024)
    (made,) = serve(engine, [(fork.prompt, params)])
    assert {i: ids(o) for i, o in made.items()} == {i: ids(o) for i, o in plain.items()}
    assert {check_answer(fork, ids(outputs)).wrong for outputs in made.values()} == {0}
    assert engine.stats.draft_tokens > 0
    if how == "probe":
        assert_all_accepted(engine)  # the draft model draws with the same numbers


def test_nothing_is_made_behind_an_end(on_probe):
    """A ring that the prompt has gone round twice: from the second step on five tokens a step."""
    (once,) = rings(40)
    ring = Ring(once.tokens, once.salt, prompt_len=83)
    expected = ring.expected(40)
    engine = on_probe("ngram")

    def run(**params):
        request = engine.add(ring.prompt, SamplingParams(**{"max_tokens": 40, **params}))
        made = drain(engine)[request.id][0]
        assert_idle(engine)
        return made

    for last in range(20, 27):
        assert ids(run(max_tokens=last)) == expected[:last]
        assert ids(run(stop_token_ids=frozenset([expected[last]]), min_tokens=last)) == expected[: last + 1]
        outputs = run(stop=(f"t{expected[last]}",))
        assert "".join(output.text for output in outputs) == " ".join(f"t{t}" for t in expected[:last]) + " "
        assert (len(outputs), outputs[-1].finish_reason) == (last + 1, "stop")
    engine.sampler.eos_token_ids = frozenset([expected[3]])
    assert ids(run()) == expected[:4]
    assert ids(run(min_tokens=6))[:3] == expected[:3]
    assert expected[3] not in ids(run(min_tokens=6))[:6]  # forbidden until then
    assert len(run(ignore_eos=True)) == 40
    assert engine.stats.accepted_draft_tokens > 100


def test_guesses_preempt_nobody_and_wait_for_no_memory(on_probe):
    """One request fills the pool to the last slot: drafts get what there is."""
    engine = on_probe("probe", num_blocks=4, block_size=16)
    (ring,) = rings(20)
    most = 4 * 16 - len(ring.prompt) + 1
    assert_exact(ring, ids(serve(engine, [(ring.prompt, greedy(most))])[0][0]), most)
    assert engine.scheduler.stats.preemptions == 0
    assert_all_accepted(engine)


@pytest.mark.parametrize("n", [2, 5])
def test_a_prompt_whose_last_piece_is_one_token_gets_no_drafts_before_its_forks(make_engine, n):
    engine = make_engine(speculation="ngram", max_num_batched_tokens=64, max_num_seqs=8)
    (ring,) = rings(62)  # 65 prompt tokens: a piece of 64, and one of a single token
    request = engine.add(ring.prompt, greedy(40, n=n))
    made = drain(engine)[request.id]
    for index in range(n):
        assert_exact(ring, ids(made[index]), 40)
