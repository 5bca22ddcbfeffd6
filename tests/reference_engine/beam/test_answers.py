"""Beam search: the answers of transformers' generate, and what cannot be searched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pabench.errors import UsageError
from pabench.probe import check_answer, draw_fork
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from tests.reference_engine.beam.support import EOS, MAX_LEN, VOCAB, answers, beams, prompt_of
from tests.reference_engine.helpers import SPEC, assert_idle, drain, ids


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
