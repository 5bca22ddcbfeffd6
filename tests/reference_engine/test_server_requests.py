"""What a request may ask for, over HTTP, on a random Llama: answers ranked, searched, scored, steered."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
import transformers

from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.loader import load_model
from reference_engine.scheduling.sequence import SamplingParams
from reference_engine.serving.tokenizer import Tokenizer
from tests.reference_engine.helpers import drain
from tests.reference_engine.http import serve

VOCAB, EOS = 61, 2
PROMPT = torch.randint(4, VOCAB, (21,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tiny_probe):
    """transformers' model, ours of the same weights, and a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4, pad_token_id=0, bos_token_id=1,
        eos_token_id=EOS)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    return theirs, load_model(folder, torch.float32, torch.device("cpu"), 96), Tokenizer(tiny_probe)


@pytest.fixture
def make(llama):
    """An engine on the random Llama."""

    def make(**config):
        defaults = {"max_model_len": 96, "block_size": 4, "num_blocks": 128, "check_integrity": True}
        return Engine(*llama[1:], EngineConfig(**defaults | config))

    return make


def body(prompt=PROMPT, **more):
    return {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **more}


def answers(engine, params, prompt=PROMPT):
    """What the engine itself makes of it: choice -> outputs."""
    request = engine.add(tuple(prompt), params)
    return drain(engine)[request.id]


def logprobs_of(theirs, tokens):
    """[len(tokens) - 1, vocab]: what comes behind each."""
    with torch.inference_mode():
        return torch.log_softmax(theirs(torch.tensor([tokens])).logits[0, :-1], dim=-1)


@pytest.mark.parametrize("config", [{}, {"max_num_batched_tokens": 64, "max_num_seqs": 4}, {"kv": "contiguous"}])
def test_prompt_logprobs_are_transformers_and_the_same_cold_and_warm(llama, make, config):
    async def scenario(client):
        chunked = PROMPT * 4  # longer than a step of 64 tokens
        expected = logprobs_of(llama[0], chunked)
        cold, warm = [(await client.post(body(chunked, prompt_logprobs=3)))[1] for _ in "ab"]
        first, *rest = cold["choices"][0]["prompt_logprobs"]
        assert first is None
        assert len(rest) == len(chunked) - 1
        for row, token, entry in zip(expected, chunked[1:], rest, strict=True):
            order = row.argsort(descending=True).tolist()
            assert set(entry) == {str(token), *map(str, order[:3])}
            for told, shown in entry.items():
                assert shown["logprob"] == pytest.approx(row[int(told)].item(), abs=1e-4)
                assert shown["rank"] == order.index(int(told)) + 1
                assert shown["decoded_token"] == f"t{told}" or int(told) < 16
        assert cold["choices"] == warm["choices"]
        assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # all of the prompt is computed for it
        _, plain = await client.post(body(chunked, stream=False))
        assert plain["choices"][0]["token_ids"] == cold["choices"][0]["token_ids"]
        assert plain["choices"][0]["prompt_logprobs"] is None

    serve(make(**config), scenario)


def test_echo_stands_before_the_answer_with_its_logprobs(llama, make):
    async def scenario(client):
        expected = logprobs_of(llama[0], PROMPT)
        words = " ".join(f"t{t}" for t in PROMPT)
        for prompt in (PROMPT, words):  # ids, and a text: the same tokens
            asked = body(prompt, echo=True, logprobs=2, allowed_token_ids=list(range(16, VOCAB)))
            _, whole = await client.post(asked | {"n": 2})
            for choice in whole["choices"]:
                made, told = choice["token_ids"], choice["logprobs"]
                assert choice["text"] == words + " ".join(f"t{t}" for t in made)
                assert {len(values) for values in told.values()} == {len(PROMPT) + 8}
                assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
                chosen = expected[range(len(PROMPT) - 1), PROMPT[1:]].tolist()
                assert told["token_logprobs"][1 : len(PROMPT)] == pytest.approx(chosen, abs=1e-4)
                for at, token in zip(told["text_offset"], [*PROMPT, *made], strict=True):
                    assert choice["text"][at:].lstrip().startswith(f"t{token}")
            _, alone = await client.post(asked)
            chunks = await client.stream(asked)
            streamed = [chunk["choices"][0] for chunk in chunks]
            assert "".join(c["text"] for c in streamed) == alone["choices"][0]["text"]
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
                joined = [value for c in streamed for value in c["logprobs"][name]]
                assert joined == alone["choices"][0]["logprobs"][name]
        _, unscored = await client.post(body(echo=True))
        assert unscored["choices"][0]["text"].startswith(words)
        assert unscored["choices"][0]["logprobs"] is None

    serve(make(), scenario)


def test_scoring_alone_generates_nothing(llama, make):
    async def scenario(client):
        other = PROMPT[::-1]
        _, whole = await client.post(body([PROMPT, other], echo=True, logprobs=0, max_tokens=0))
        for prompt, choice in zip((PROMPT, other), whole["choices"], strict=True):
            assert choice["text"] == " ".join(f"t{t}" for t in prompt)
            assert (choice["token_ids"], choice["finish_reason"]) == ([], "length")
            told = choice["logprobs"]["token_logprobs"]
            chosen = logprobs_of(llama[0], prompt)[range(len(prompt) - 1), prompt[1:]].tolist()
            assert told[0] is None
            assert told[1:] == pytest.approx(chosen, abs=1e-4)
        assert whole["usage"]["completion_tokens"] == 0
        (chunk,) = await client.stream(body(echo=True, logprobs=0, max_tokens=0))
        _, alone = await client.post(body(echo=True, logprobs=0, max_tokens=0))  # a batch of two sums in another order
        assert chunk["choices"][0]["logprobs"] == alone["choices"][0]["logprobs"]
        assert (chunk["choices"][0]["text"], chunk["choices"][0]["token_ids"]) == (whole["choices"][0]["text"], [])
        _, best = await client.post(body(echo=True, max_tokens=0, best_of=2))
        assert [c["text"] for c in best["choices"]] == [chunk["choices"][0]["text"]]

    serve(make(), scenario)


def test_best_of_shows_those_that_rank_best(make):
    made = answers(make(), SamplingParams(8, n=6, temperature=1.0, seed=5, ignore_eos=True, logprobs=0))
    means = {i: np.mean([o.logprobs.chosen for o in outputs]) for i, outputs in made.items()}
    ranked = sorted(means, key=lambda i: -means[i])
    assert ranked[:2] != [0, 1]  # else it would show nothing

    async def scenario(client):
        asked = body([PROMPT, PROMPT], temperature=1.0, seed=5, n=2, best_of=6)
        _, whole = await client.post(asked)
        best = [[o.token_id for o in made[i]] for i in ranked[:2]]
        assert [c["index"] for c in whole["choices"]] == [0, 1, 2, 3]
        assert [c["token_ids"] for c in whole["choices"]] == best * 2
        assert {c["logprobs"] for c in whole["choices"]} == {None}
        assert whole["usage"]["completion_tokens"] == 4 * 8
        _, told = await client.post(asked | {"logprobs": 1})
        assert [len(c["logprobs"]["tokens"]) for c in told["choices"]] == [8] * 4
        assert [c["token_ids"] for c in told["choices"]] == best * 2
        await client.wait_idle()

    serve(make(), scenario)


@pytest.mark.parametrize("more", [
    {"n": 3}, {"n": 2, "beam_width": 5, "length_penalty": 2.0}, {"n": 1, "beam_width": 4, "early_stopping": True},
])
def test_beams_over_http_are_the_engines(make, more):
    width = more.get("beam_width", more["n"])
    made = answers(make(), SamplingParams(**{"max_tokens": 12, "logprobs": 1, "beam_width": width, **more}))

    async def scenario(client):
        _, whole = await client.post({
            "prompt": [PROMPT, PROMPT], "max_tokens": 12, "use_beam_search": True, "logprobs": 1,
            "return_token_ids": True, **more})
        for at, choice in enumerate(whole["choices"]):
            outputs = made[at % more["n"]]
            assert choice["token_ids"] == [o.token_id for o in outputs]
            assert choice["finish_reason"] == outputs[-1].finish_reason
            assert choice["logprobs"]["token_logprobs"] == pytest.approx(
                [o.logprobs.chosen for o in outputs], abs=1e-4)
        assert len(whole["choices"]) == 2 * more["n"]
        await client.wait_idle()
        assert await client.gauge("e2e_request_latency_seconds_count") == 2

    serve(make(), scenario)


@pytest.mark.parametrize("more", [
    {"presence_penalty": 2.0}, {"frequency_penalty": 1.5}, {"repetition_penalty": 1.8},
    {"presence_penalty": -1.0, "frequency_penalty": 0.5, "repetition_penalty": 0.7},
    {"logit_bias": {"7": 100, "9": 99.5}}, {"logit_bias": {"7": 4.5}, "frequency_penalty": 2},
    {"allowed_token_ids": [5, 9, 33]}, {"allowed_token_ids": [EOS, 30, 31], "min_tokens": 8, "ignore_eos": False},
])
@pytest.mark.parametrize("config", [{}, {"speculation": "ngram"}])
def test_what_steers_the_logits_does_so_in_the_published_way(llama, make, more, config):
    def steered(tokens):
        """Greedy by the formulas, over transformers' logits."""
        with torch.no_grad():
            row = llama[0](torch.tensor([tokens])).logits[0, -1]
        seen, made = set(tokens), tokens[len(PROMPT) :]
        for token in range(VOCAB):
            row[token] += more.get("logit_bias", {}).get(str(token), 0)
            penalty = more.get("repetition_penalty", 1) if token in seen else 1
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
            row[token] -= more.get("frequency_penalty", 0) * made.count(token)
            row[token] -= more.get("presence_penalty", 0) * (token in made)
            if token not in more.get("allowed_token_ids", range(VOCAB)) or ("min_tokens" in more and token == EOS):
                row[token] = -torch.inf
        return row.argmax().item()

    tokens = list(PROMPT)
    for _ in range(20):
        tokens.append(steered(tokens))

    async def scenario(client):
        others = [body(PROMPT[::-1], max_tokens=20), body(max_tokens=20, temperature=1.0, min_p=0.2)]
        asked = body(max_tokens=20, **more) | ({"max_tokens": 8} if "min_tokens" in more else {})
        (_, whole), *_ = await asyncio.gather(*map(client.post, [asked, *others]))
        assert whole["choices"][0]["token_ids"] == tokens[len(PROMPT) : len(PROMPT) + asked["max_tokens"]]

    serve(make(**config), scenario)
