"""On random models: what is guessed changes how fast tokens come, never which; and no slot is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.errors import UsageError
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import SamplingParams
from tests.reference_engine.helpers import assert_idle, drain, greedy, ids
from tests.reference_engine.speculation.support import assert_all_accepted, assert_same, prompts, serve

TIGHT = {"num_blocks": 24, "block_size": 8, "max_num_seqs": 8, "max_model_len": 96}


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
