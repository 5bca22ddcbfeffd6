"""Speculative decoding: what is guessed changes how fast tokens come, never which; and no slot is lost on the way."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pabench.errors import UsageError
from pabench.probe import Ring, check_answer, draw_fork
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.loader import load_model
from reference_engine.sampling.ngram import LONGEST, NgramIndex
from reference_engine.scheduling.sequence import SamplingParams
from tests.reference_engine.checkpoints import VOCAB, random_model
from tests.reference_engine.helpers import SPEC, assert_exact, assert_idle, drain, greedy, ids, rings

CPU = torch.device("cpu")
TIGHT = {"num_blocks": 24, "block_size": 8, "max_num_seqs": 8, "max_model_len": 96}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_probe):
    """Checkpoints: the probe; random ones of its vocabulary and of a small one; one with a window."""
    root = tmp_path_factory.mktemp("models")
    thin = {"num_hidden_layers": 1, "max_position_embeddings": 512}
    random_model(root / "probe-other", "Llama", thin | {"vocab_size": SPEC.vocab_size})
    random_model(root / "llama", "Llama", {})
    random_model(root / "llama-other", "Llama", thin)
    random_model(root / "mistral", "Mistral", {"sliding_window": 11})
    return {name: root / name for name in ("probe-other", "llama", "llama-other", "mistral")} | {"probe": tiny_probe}


@pytest.fixture(scope="module")
def models(folders):
    """Targets, loaded once."""
    return {name: load_model(folders[name], torch.float32, CPU, 256) for name in ("llama", "mistral")}


@pytest.fixture
def on_probe(make_engine, folders):
    """Engine on the probe that speculates: "off", "ngram", or with the draft model of that name."""
    return lambda how, **config: make_engine(**speculation(how, folders), **config)


@pytest.fixture
def on_random(models, parts, folders):
    """The same on a random model."""
    def make(how, target="llama", **config):
        defaults = {"max_model_len": 128, "num_blocks": 128, "block_size": 8, "check_integrity": True}
        return Engine(models[target], parts[1], EngineConfig(**defaults | speculation(how, folders) | config))

    return make


def speculation(how, folders):
    if how in folders:
        return {"speculation": "draft", "draft_model": folders[how]}
    return {"speculation": how}


def prompts(*lengths):
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(3, VOCAB, size).tolist()) for size in lengths]


def serve(engine, requests):
    """Outputs of each (prompt, params), choice by choice."""
    added = [engine.add(prompt, params) for prompt, params in requests]
    made = drain(engine)
    assert_idle(engine)
    return [made[request.id] for request in added]


def assert_same(ours, theirs):
    """Equal in all but the last digits of log-probabilities."""
    for a, b in zip(ours, theirs, strict=True):
        assert sorted(a) == sorted(b)
        for index in a:
            tell = [[(o.token_id, o.text, o.finish_reason, o.stop_reason) for o in x[index]] for x in (a, b)]
            assert tell[0] == tell[1]
            for mine, other in zip(a[index], b[index], strict=True):
                assert (mine.logprobs is None) == (other.logprobs is None)
                if mine.logprobs is not None:
                    assert mine.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-4)
                    assert [t for t, _ in mine.logprobs.top] == [t for t, _ in other.logprobs.top]


def assert_all_accepted(engine):
    assert engine.stats.accepted_draft_tokens == engine.stats.draft_tokens > 0


# The n-gram index.

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


# On the probe: exact under any mixture of mechanisms.

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


# On random models: the same answers as without.

def all_kinds():
    """One request of each kind that sampling knows."""
    kinds = [
        {}, {"n": 3, "temperature": 1.0, "seed": 7}, {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "seed": 3},
        {"logprobs": 4}, {"logprobs": 2, "prompt_logprobs": 2}, {"stop_token_ids": frozenset(range(3, 60))},
        {"min_tokens": 20, "ignore_eos": False, "stop_token_ids": frozenset(range(3, 120))},
        {"presence_penalty": 0.8, "frequency_penalty": 0.4, "repetition_penalty": 1.3},
        {"logit_bias": ((5, 4.0), (9, 4.0))}, {"stop": ("t5", "t11 "), "temperature": 1.0, "seed": 1},
    ]
    lengths = [20, 33, 8, 41, 17, 24, 9, 30, 16, 12]
    return [(prompt, greedy(32, **kind)) for prompt, kind in zip(prompts(*lengths), kinds, strict=True)]


@pytest.fixture(scope="module")
def plain_answers(models, parts):
    config = EngineConfig(max_model_len=128, num_blocks=128, block_size=8, check_integrity=True)
    return serve(Engine(models["llama"], parts[1], config), all_kinds())


@pytest.mark.parametrize(("how", "config"), [
    ("ngram", {}), ("llama", {}), ("llama-other", {}),
    ("ngram", {"max_num_batched_tokens": 24, "max_num_seqs": 8}),
    ("llama", {"max_num_batched_tokens": 24, "max_num_seqs": 8}),
    ("ngram", TIGHT), ("llama-other", TIGHT), ("llama-other", TIGHT | {"preemption": "swap"}),
    ("ngram", TIGHT | {"preemption": "wait"}), ("llama", TIGHT | {"prefix_caching": False}),
    ("llama-other", {"kv": "contiguous", "reservation": "pow2"}),
])
def test_every_kind_of_request_is_answered_as_without_speculation(on_random, plain_answers, how, config):
    engine = on_random(how, **config)
    assert_same(serve(engine, all_kinds()), plain_answers)
    stats = engine.stats
    assert 0 < stats.accepted_draft_tokens <= stats.draft_tokens
    assert 1 < stats.acceptance_length <= 1 + engine.config.num_speculative_tokens
    if config.get("num_blocks") and config.get("preemption") != "wait":
        assert engine.scheduler.stats.preemptions > 0


@pytest.mark.parametrize("how", ["ngram", "mistral", "llama"])
def test_windows_slide_only_behind_both_models(on_random, how):
    """The draft "llama" looks back at everything, so its target's window frees nothing."""
    requests = [(prompt, greedy(60)) for prompt in prompts(5, 20, 40)]
    plain = serve(on_random("off", "mistral"), requests)
    engine = on_random(how, "mistral", num_blocks=26 if how == "mistral" else 128)
    assert_same(serve(engine, requests), plain)
    assert engine.scheduler.window == (None if how == "llama" else 11)
    if how == "mistral":
        assert_all_accepted(engine)


# A draft model that is the target: everything is accepted.

@pytest.mark.parametrize("k", [1, 2, 5])
def test_every_round_accepts_all_and_adds_one(on_random, k):
    engine = on_random("llama", num_speculative_tokens=k, max_num_batched_tokens=1024)
    rounds = 7
    for prompt in prompts(9, 16, 23):
        engine.add(prompt, greedy(1 + rounds * (k + 1)))
    steps = 0
    while engine.has_work:
        outputs = engine.step()
        assert len(outputs) == 3 * (k + 1 if steps else 1)
        steps += 1
    assert steps == 1 + rounds
    assert engine.stats.acceptance_length == k + 1
    assert_all_accepted(engine)
    assert_idle(engine)


@pytest.mark.parametrize("config", [
    TIGHT, TIGHT | {"preemption": "swap"}, TIGHT | {"preemption": "swap", "num_swap_blocks": 6},
    TIGHT | {"max_num_batched_tokens": 12, "num_blocks": 15},
    TIGHT | {"prefix_caching": False, "max_num_batched_tokens": 12, "num_blocks": 15},
], ids=["recompute", "swap", "little-swap", "chunks", "uncached"])
def test_all_are_accepted_after_preemption_and_prefix_hits_too(on_random, config):
    """The draft model's keys and values come and go with the target's. Prompts share beginnings and come twice."""
    engine = on_random("llama", **config)
    shared, *tails = prompts(25, 3, 9, 14, 20, 5)
    requests = [(shared + tail, greedy(38)) for tail in tails]
    plain = serve(on_random("off"), requests)
    assert_same(serve(engine, requests), plain)
    assert_same(serve(engine, requests), plain)
    answers = [tuple(ids(choices[0])) for choices in plain]
    longer = [(prompt + answer, greedy(6)) for (prompt, _), answer in zip(requests, answers, strict=True)]
    serve(engine, longer)  # finds blocks that speculation has filled
    assert_all_accepted(engine)
    assert engine.scheduler.stats.preemptions > 0
    assert (engine.scheduler.stats.prefix_hits > 0) == config.get("prefix_caching", True)
    assert (engine.scheduler.stats.swapped_in_blocks > 0) == (config.get("preemption") == "swap")


# Ends in the middle of accepted drafts.

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


# Blocks.

@pytest.mark.parametrize("how", ["ngram", "llama", "llama-other"])
def test_blocks_taken_for_guesses_are_given_back_in_the_same_step(on_random, how):
    engine = on_random(how, block_size=2, num_speculative_tokens=7, prefix_caching=False)
    (prompt,) = prompts(9)
    request = engine.add(prompt, greedy(50))
    while engine.has_work:
        engine.step()
        for seq in request.sequences:
            assert engine.allocator.num_blocks - engine.allocator.num_free_blocks == -(-seq.num_tokens // 2) or (
                seq.num_tokens == len(prompt) + 1)  # the first new token's block is taken in the next step
            assert engine.snapshot().split.token_states == seq.num_tokens - 1
    assert_idle(engine)


def test_guesses_preempt_nobody_and_wait_for_no_memory(on_probe):
    """One request fills the pool to the last slot: drafts get what there is."""
    engine = on_probe("probe", num_blocks=4, block_size=16)
    (ring,) = rings(20)
    most = 4 * 16 - len(ring.prompt) + 1
    assert_exact(ring, ids(serve(engine, [(ring.prompt, greedy(most))])[0][0]), most)
    assert engine.scheduler.stats.preemptions == 0
    assert_all_accepted(engine)


def test_beams_get_no_drafts_and_draft_models_follow_them(on_random):
    """The prompt of a beam search is in the prefix cache behind it, for both models."""
    (prompt,) = prompts(26)
    beams = (prompt, SamplingParams(max_tokens=12, n=3, beam_width=3, ignore_eos=True))
    plain = serve(on_random("off"), [beams])
    engine = on_random("llama")
    assert_same(serve(engine, [beams]), plain)
    assert engine.stats.draft_tokens == 0
    found = engine.add(prompt, greedy(20))
    drain(engine)
    assert found.num_cached_tokens == 24
    assert_all_accepted(engine)


# What cannot be.

def test_a_draft_model_that_does_not_fit_is_refused(on_random, on_probe):
    with pytest.raises(UsageError, match="has 4096 token ids, the model has 199"):
        on_random("probe")
    with pytest.raises(UsageError, match="goes to 256 tokens, max_model_len is 300"):
        on_random("llama", max_model_len=300)
    with pytest.raises(UsageError, match="is no model folder"):
        on_random("off", speculation="draft", draft_model=Path("nowhere"))


@pytest.mark.parametrize("n", [2, 5])
def test_a_prompt_whose_last_piece_is_one_token_gets_no_drafts_before_its_forks(make_engine, n):
    engine = make_engine(speculation="ngram", max_num_batched_tokens=64, max_num_seqs=8)
    (ring,) = rings(62)  # 65 prompt tokens: a piece of 64, and one of a single token
    request = engine.add(ring.prompt, greedy(40, n=n))
    made = drain(engine)[request.id]
    for index in range(n):
        assert_exact(ring, ids(made[index]), 40)
