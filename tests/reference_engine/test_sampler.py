"""Sampling: distributions, cuts, seeds, log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference_engine.sampling.sampler import Sampler, choice_seed, uniforms
from reference_engine.scheduling.sequence import Request, SamplingParams, Sequence

PROBS = [0.5, 0.25, 0.15, 0.1]


def sequence(params, *, seed=0, position=3):
    request = Request((1,), params, seed, 0.0)
    return Sequence(request, 0, [0] * position, choice_seed(seed, 0), None)


def draw(params, count, probs=PROBS):
    """`count` tokens drawn under different seeds from `probs` at temperature 1, in one batch."""
    logits = torch.tensor(probs).log().expand(count, len(probs))
    seqs = [sequence(params, seed=i) for i in range(count)]
    return np.bincount(Sampler(frozenset()).sample(logits, seqs).token_ids, minlength=len(probs)) / count


def test_frequencies_follow_the_probabilities():
    # 20 000 draws: the standard error is at most 0.0035
    np.testing.assert_allclose(draw(SamplingParams(1, temperature=1.0), 20_000), PROBS, atol=0.015)


@pytest.mark.parametrize(("params", "kept"), [
    ({"top_k": 2}, [0.5, 0.25, 0, 0]),
    ({"top_p": 0.6}, [0.5, 0.25, 0, 0]),
    ({"top_p": 0.5}, [0.5, 0, 0, 0]),
    ({"top_p": 0.001}, [0.5, 0, 0, 0]),
    ({"top_k": 3, "top_p": 0.8}, [0.5, 0.25, 0, 0]),  # 0.8 of what top_k left
    ({"top_k": 99}, PROBS),
    ({"top_k": 2**64 - 1}, PROBS),  # what JSON can say and a tensor cannot hold
    ({"min_p": 0.4}, [0.5, 0.25, 0, 0]),  # 0.4 of the likeliest
    ({"min_p": 0.25}, [0.5, 0.25, 0.15, 0]),
    ({"min_p": 1.0}, [0.5, 0, 0, 0]),
    ({"min_p": 0.2, "top_k": 3}, [0.5, 0.25, 0.15, 0]),
    ({"allowed_token_ids": frozenset({1, 2})}, [0, 0.25, 0.15, 0]),
    ({"logit_bias": ((0, float(np.log(0.5))),)}, [0.25, 0.25, 0.15, 0.1]),
])
def test_cuts_keep_the_likeliest_only(params, kept):
    kept = np.array(kept) / sum(kept)
    np.testing.assert_allclose(draw(SamplingParams(1, temperature=1.0, **params), 5000), kept, atol=0.03)


def test_long_lists_of_token_ids_become_tensors_once_a_request():
    seq = sequence(SamplingParams(
        9, min_tokens=3, stop_token_ids=frozenset({3, 2**63}), logit_bias=((1, 2.0), (2, -1.0), (1, 0.5), (9, 3.0)),
        allowed_token_ids=frozenset({1, 2, 3, 9})))  # two tokens of its output are there already
    sampler, logits = Sampler(frozenset()), torch.zeros(1, 4)
    assert sampler._adjust(logits, [seq], None).tolist() == [[-torch.inf, 2.5, -1.0, -torch.inf]]
    made = seq.request.steering
    seq.append(1)
    assert sampler._adjust(logits, [seq], None).tolist() == [[-torch.inf, 2.5, -1.0, 0]]
    assert seq.request.steering is made is not None


def test_temperature_sharpens():
    expected = np.array(PROBS) ** 2 / sum(p**2 for p in PROBS)
    np.testing.assert_allclose(draw(SamplingParams(1, temperature=0.5), 10_000), expected, atol=0.02)


def test_a_token_of_zero_probability_is_never_drawn():
    assert draw(SamplingParams(1, temperature=1.0), 5000, [0.0, 0.5, 0.0, 0.5, 0.0])[[0, 2, 4]].sum() == 0


def test_mixed_batches_leave_greedy_rows_alone():
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    params = [SamplingParams(1), SamplingParams(1, temperature=5.0, seed=1), SamplingParams(1, logprobs=2)] * 2
    seqs = [sequence(p, seed=i) for i, p in enumerate(params)]
    together = Sampler(frozenset()).sample(logits, seqs)
    for i, seq in enumerate(seqs):
        assert Sampler(frozenset()).sample(logits[i : i + 1], [seq]).token_ids == [together.token_ids[i]]
    assert [together.token_ids[i] for i in (0, 2, 3, 5)] == logits.argmax(-1)[[0, 2, 3, 5]].tolist()
    assert [lp is not None for lp in together.logprobs] == [False, False, True] * 2


def test_logprobs_are_of_the_models_own_distribution():
    logits = torch.tensor([PROBS]).log() + 3
    (found,) = Sampler(frozenset()).sample(logits, [sequence(SamplingParams(1, temperature=9.0, logprobs=2))]).logprobs
    assert [token for token, _ in found.top] == [0, 1]
    np.testing.assert_allclose([np.exp(lp) for _, lp in found.top], [0.5, 0.25], rtol=1e-5)
    assert np.exp(found.chosen) == pytest.approx(PROBS[0], rel=1e-4) or found.chosen < found.top[0][1]


def test_logprobs_zero_tells_the_chosen_token_only():
    (found,) = Sampler(frozenset()).sample(torch.zeros(1, 4), [sequence(SamplingParams(1, logprobs=0))]).logprobs
    assert found.top == ()
    assert found.chosen == pytest.approx(np.log(0.25))


def test_ranks_count_the_likelier():
    logits = torch.tensor([PROBS]).log().expand(4, 4)
    asked = Sampler(frozenset()).logprobs(logits, torch.arange(4), [0, 1, 2, 3])
    assert [found.rank for found in asked] == [1, 2, 3, 4]
    (tied,) = Sampler(frozenset()).logprobs(torch.zeros(1, 4), torch.tensor([3]), [0])
    assert tied.rank == 1


def test_penalties_change_their_own_row_only_and_logprobs_not_at_all():
    logits = torch.tensor([[3.0, 2.0, 1.0, -4.0]] * 4)
    penalties = [{"presence_penalty": 2.0}, {"frequency_penalty": 0.6}, {"repetition_penalty": 2.0}, {}]
    seqs = []
    for params in penalties:  # the prompt is token 1, the output 0, 0
        seqs.append(sequence(SamplingParams(9, logprobs=0, **params), position=0))
        seqs[-1].tokens, seqs[-1].num_tokens = [1, 0, 0], 3
    found = Sampler(frozenset()).sample(logits, seqs)
    # 3 - 2 = 1 < 2; 3 - 2 * 0.6 = 1.8 < 2; 3 / 2 and 2 / 2, both seen: 1.5 stays ahead
    assert found.token_ids == [1, 1, 0, 0]
    own = torch.log_softmax(logits[0], dim=-1)
    assert [lp.chosen for lp in found.logprobs] == pytest.approx(own[[1, 1, 0, 0]].tolist())
    assert logits.tolist() == [[3.0, 2.0, 1.0, -4.0]] * 4


def test_min_tokens_forbids_ends_in_its_own_row_only():
    logits = torch.tensor([[1.0, 9.0, 5.0]] * 3)
    seqs = [sequence(SamplingParams(9, min_tokens=4, ignore_eos=flag), position=2) for flag in (False, True)]
    seqs.append(sequence(SamplingParams(9), position=2))
    assert Sampler(frozenset([1])).sample(logits, seqs).token_ids == [2, 1, 1]
    assert logits.tolist() == [[1.0, 9.0, 5.0]] * 3


def test_uniforms_are_uniform_and_differ_by_seed_and_position():
    u = uniforms([choice_seed(7, i % 100) for i in range(10_000)], [i // 100 for i in range(10_000)])
    assert len(set(u.tolist())) > 9_990
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    np.testing.assert_allclose(np.histogram(u, bins=10, range=(0, 1))[0], 1000, atol=130)
    assert len({choice_seed(s, i) for s in range(-50, 50) for i in range(50)}) == 5000


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e30])
def test_temperatures_of_any_size_draw_a_token_that_is_one(temperature):
    logits = torch.tensor([[1.0, 3.0, -2.0, float("-inf")]])
    request = Request((1,), SamplingParams(max_tokens=9, temperature=temperature), 7, 0.0)
    (token,) = Sampler(frozenset()).sample(logits, [Sequence(request, 0, [1], 7)]).token_ids
    assert token in ((1,) if temperature < 1 else (0, 1, 2))


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_k": 3}, {}])
def test_the_smallest_top_p_keeps_the_likeliest(params):
    """5e-324 times a sum below a half is 0."""
    params = SamplingParams(1, temperature=1.0, top_p=5e-324, **params)
    assert draw(params, 50, [0.4, 0.3, 0.2, 0.1]).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("row", [
    [1.0, np.nan, 2.0, 0.0], [1.0, np.inf, 2.0, np.inf], [np.nan] * 4, [np.inf] * 4, [-np.inf] * 4,
])
@pytest.mark.parametrize("params", [{}, {"top_k": 2, "top_p": 0.5}, {"min_p": 0.1}, {"top_p": 5e-324}])
def test_logits_that_are_no_numbers_give_the_greedy_token_to_their_row_only(row, params):
    logits = torch.tensor([row, PROBS, row], dtype=torch.float32)
    greedy, *drawn = (sequence(SamplingParams(1, temperature=t, **params), seed=t) for t in (0, 1, 2))
    sampler = Sampler(frozenset())
    expected, beside, found = sampler.sample(logits, [greedy, *drawn]).token_ids
    assert found == expected in range(4)
    assert beside == sampler.sample(logits[1:2], drawn[:1]).token_ids[0]
