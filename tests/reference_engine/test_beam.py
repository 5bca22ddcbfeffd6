"""Beam search: the answers of transformers' generate, and beams that share, free and wait for memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pabench.errors import UsageError
from pabench.probe import check_answer, draw_fork
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.memory.allocator import blocks_for
from reference_engine.model.loader import load_model
from reference_engine.scheduling.sequence import SamplingParams, Sequence, Status
from reference_engine.serving.tokenizer import Tokenizer
from tests.reference_engine.helpers import SPEC, assert_idle, drain, greedy, ids

VOCAB, MAX_LEN, EOS = 61, 96, (2, 3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tiny_probe):
    """transformers' model, ours of the same weights, and any tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4, pad_token_id=0, bos_token_id=1,
        eos_token_id=list(EOS),
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    ours = load_model(folder, torch.float32, torch.device("cpu"), MAX_LEN)
    return theirs, ours, Tokenizer(tiny_probe)


@pytest.fixture
def serve(llama):
    """An engine on the random Llama."""

    def make(**config):
        return Engine(*llama[1:], EngineConfig(**{
            "max_model_len": MAX_LEN, "block_size": 4, "num_blocks": 512, "check_integrity": True, **config}))

    return make


def beams(max_tokens, width, **more):
    return SamplingParams(**{"max_tokens": max_tokens, "beam_width": width, "n": width, **more})


def prompt_of(length, seed):
    return tuple(torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def generate(theirs, prompt, params):
    """(tokens without padding, score) of each of transformers' answers."""
    end = [*params.stop_token_ids, *(() if params.ignore_eos else EOS)]
    theirs.generation_config.eos_token_id = end or None  # an argument of None would mean the model's own
    with torch.inference_mode():
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=params.beam_width, num_return_sequences=params.n, do_sample=False,
            max_new_tokens=params.max_tokens, min_new_tokens=min(params.min_tokens, params.max_tokens) or None,
            length_penalty=params.length_penalty, early_stopping=params.early_stopping,
            pad_token_id=0, return_dict_in_generate=True, output_scores=True,
        )
    answers = []
    for row, score in zip(out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist(), strict=True):
        length = next((at + 1 for at, token in enumerate(row) if token in end), params.max_tokens)
        answers.append((row[:length], score))
    return answers


def answers(engine, request):
    """Tokens of each choice, by rank."""
    made = drain(engine)[request.id]
    assert sorted(made) == list(range(request.params.n))
    assert_idle(engine)
    return [ids(made[rank]) for rank in range(request.params.n)]


PARAMS = st.builds(
    lambda max_tokens, width, n, **more: beams(max_tokens, width, **{**more, "n": min(n, width)}),
    max_tokens=st.integers(1, 24), width=st.integers(2, 8), n=st.integers(1, 8),
    length_penalty=st.sampled_from([1.0, 1.0, 0.0, 2.5, -1.0]), early_stopping=st.booleans(),
    ignore_eos=st.sampled_from([False, False, True]), min_tokens=st.sampled_from([0, 0, 6]),
    stop_token_ids=st.sampled_from([
        frozenset(), frozenset({17}), frozenset({5, 29, 40}), frozenset(range(4, 40)),
    ]),
)
MEMORY = st.sampled_from([
    {}, {"prefix_caching": False}, {"kv": "contiguous"}, {"block_size": 1}, {"block_size": 16},
    {"max_num_batched_tokens": 8, "max_num_seqs": 8},
])


@settings(deadline=None, max_examples=50)
@given(params=PARAMS, length=st.integers(1, 30), seed=st.integers(0, 1000), memory=MEMORY)
def test_answers_are_those_of_transformers(llama, params, length, seed, memory):
    prompt = prompt_of(length, seed)
    engine = Engine(*llama[1:], EngineConfig(**{
        "max_model_len": MAX_LEN, "block_size": 4, "num_blocks": 512, "check_integrity": True, **memory}))
    request = engine.add(prompt, params)
    ours = answers(engine, request)
    theirs = generate(llama[0], prompt, params)
    assert ours == [tokens for tokens, _ in theirs]
    scores = [hypothesis.score for hypothesis in request.hypotheses]
    np.testing.assert_allclose(scores[: params.n], [score for _, score in theirs], rtol=1e-4, atol=1e-4)


def test_some_beams_end_early_and_say_so(llama, serve):
    """Ends of every kind, or the comparison above would be worth less."""
    reasons, lengths = set(), set()
    for seed in range(6):
        engine = serve()
        engine.add(prompt_of(9, seed), beams(16, 6, stop_token_ids=frozenset({17})))
        for outputs in next(iter(drain(engine).values())).values():
            last = outputs[-1]
            reasons.add((last.finish_reason, last.stop_reason, last.token_id in EOS))
            lengths.add(len(outputs))
            assert all(output.finish_reason is None for output in outputs[:-1])
    assert reasons == {("stop", 17, False), ("stop", None, True), ("length", None, False)}
    assert len(lengths) > 3


@pytest.mark.parametrize("width", [2, 6])
def test_early_stopping_ends_sooner_and_both_as_transformers_does(llama, serve, width):
    found, steps = {}, {}
    for early in (True, False):
        params = beams(30, width, early_stopping=early, length_penalty=2.5, stop_token_ids=frozenset({5, 29, 40}))
        engine = serve()
        request = engine.add(prompt_of(9, 5), params)
        steps[early] = 0
        while engine.has_work:
            engine.step()
            steps[early] += 1
        found[early] = [hypothesis.tokens for hypothesis in request.hypotheses]
        assert found[early] == [tokens for tokens, _ in generate(llama[0], request.prompt, params)]
    assert found[True] != found[False]
    assert steps[True] < steps[False]


def test_log_probabilities_are_the_models_own(llama, serve):
    prompt = prompt_of(9, 3)
    engine = serve()
    request = engine.add(prompt, beams(12, 4, logprobs=3, length_penalty=0.0))
    made = drain(engine)[request.id]
    for rank, hypothesis in enumerate(request.hypotheses):
        outputs = made[rank]
        assert hypothesis.tokens == ids(outputs)
        with torch.inference_mode():
            logits = llama[0](torch.tensor([prompt + tuple(hypothesis.tokens)])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, dim=-1)
        for output, row in zip(outputs, logprobs, strict=True):
            values, tokens = row.topk(3)
            assert [token for token, _ in output.logprobs.top] == tokens.tolist()
            np.testing.assert_allclose([value for _, value in output.logprobs.top], values, atol=1e-4)
            assert output.logprobs.rank == 1 + int((row > row[output.token_id]).sum())
            assert abs(output.logprobs.chosen - float(row[output.token_id])) < 1e-4
        assert abs(sum(output.logprobs.chosen for output in outputs) - hypothesis.score) < 1e-6
    assert request.hypotheses == sorted(request.hypotheses, key=lambda hypothesis: -hypothesis.score)


# On the probe, where each branch of a fork is known.

@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("kv", ["paged", "contiguous"])
@pytest.mark.parametrize("block_size", [1, 8, 16])
def test_the_best_two_beams_are_the_branches_of_a_fork(make_engine, kv, width, block_size):
    engine = make_engine(kv=kv, block_size=block_size, num_blocks=8192 // block_size)
    fork = draw_fork(SPEC, np.random.default_rng(3), 30)
    request = engine.add(fork.prompt, beams(31, width, n=2, ignore_eos=True))
    made = drain(engine)[request.id]
    for rank in (0, 1):
        check = check_answer(fork, ids(made[rank]))
        assert (check.verified, check.wrong) == (31, 0)
        text = "".join(output.text for output in made[rank])
        assert text == " ".join(f"t{output.token_id}" for output in made[rank])
    assert {fork.branch(ids(made[rank])) for rank in (0, 1)} == {0, 1}
    assert (engine.stats.generation_tokens, engine.stats.prompt_tokens) == (62, len(fork.prompt))
    assert engine.stats.finished["length"] == 2
    assert_idle(engine)


# Blocks.

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


# Memory runs out.

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


@pytest.mark.parametrize(("params", "message"), [
    (beams(4, 1), "beam_width is 1, expected 2 to 8"),
    (beams(4, 9), "beam_width is 9, expected 2 to 8"),
    (beams(4, 4, n=5), "n is 5, but a search of beam_width 4"),
    (beams(4, 4, stop=("x",)), r"stop strings \['x'\]"),
    (beams(4, 4, temperature=0.7, top_k=3), "which top_k 3, temperature 0.7 would change"),
    (beams(4, 4, presence_penalty=1.0), "presence_penalty 1.0"),
    (beams(4, 4, length_penalty=float("nan")), "length_penalty is nan"),
    (beams(4, 4, length_penalty=-11.0), "length_penalty is -11.0"),
    (beams(4, 4, stop_token_ids=frozenset(range(4, VOCAB))), "only 2 tokens of the vocabulary do not end a beam"),
    (beams(90, 4), "maximum context length is 96"),
])
def test_what_cannot_be_searched_is_refused_at_once(serve, params, message):
    engine = serve()
    with pytest.raises(UsageError, match=message):
        engine.add(prompt_of(7, 0), params)
    assert not engine.has_work


def test_a_search_wider_than_the_engine_is_refused(serve):
    engine = serve(max_num_seqs=4)
    engine.add(prompt_of(7, 0), beams(4, 4))
    with pytest.raises(UsageError, match="at most 4 sequences"):
        engine.add(prompt_of(7, 0), beams(4, 5))


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
