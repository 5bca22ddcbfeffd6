"""The probe under transformers: exact in every dtype and preset, and a damaged cache slot is located exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from pabench.probe import (
    PRESETS,
    SEP,
    Fork,
    ProbePrompt,
    Ring,
    build_checkpoint,
    check_answer,
    complement,
    diagnose,
    draw_fork,
    draw_rings,
)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], LlamaForCausalLM]:
    root = tmp_path_factory.mktemp("probes")

    @lru_cache(maxsize=2)
    def load(preset: str, dtype: str) -> LlamaForCausalLM:
        folder: Path = root / f"{preset}-{dtype}"
        build_checkpoint(PRESETS[preset], folder, dtype)
        return LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()

    return load


def prefill(model: LlamaForCausalLM, prompt: tuple[int, ...]) -> tuple[DynamicCache, int, float]:
    """Cache, greedy token and its log-probability after `prompt`."""
    cache = DynamicCache()
    with torch.no_grad():
        logits = model(torch.tensor([prompt]), past_key_values=cache).logits[0, -1].float()
    token = int(logits.argmax())
    return cache, token, float(torch.log_softmax(logits, -1)[token])


def decode(model: LlamaForCausalLM, cache: DynamicCache, token: int, count: int) -> tuple[list[int], float]:
    """`token` and `count - 1` greedy tokens behind it, and the lowest log-probability among them."""
    ids, lowest = [token], 0.0
    while len(ids) < count:
        with torch.no_grad():
            logits = model(torch.tensor([ids[-1:]]), past_key_values=cache).logits[0, -1].float()
        ids.append(int(logits.argmax()))
        lowest = min(lowest, float(torch.log_softmax(logits, -1)[ids[-1]]))
    return ids, lowest


def generate(model: LlamaForCausalLM, prompt: tuple[int, ...], count: int) -> tuple[list[int], float]:
    cache, token, first = prefill(model, prompt)
    ids, lowest = decode(model, cache, token, count)
    return ids, min(first, lowest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["tiny", "gqa", "mqa", "mha"])
def test_rings_are_exact_around_block_edges(model, preset: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    # prompt = ring + 3 tokens: lengths just below, at and above multiples of 16 and 32
    for ring in draw_rings(PRESETS[preset], rng, [12, 13, 14, 28, 29, 30, 61, 62]):
        ids, lowest = generate(model(preset, dtype), ring.prompt, 2 * len(ring.tokens) + 2)  # two laps
        assert ids == ring.expected(len(ids))
        assert lowest > -1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("preset", "length"), [("tiny", 3500), ("gqa", 3500), ("mqa", 2000), ("mha", 1000)])
def test_long_rings_are_exact(model, preset: str, length: int, dtype: str) -> None:
    ring = draw_rings(PRESETS[preset], np.random.default_rng(length), [length])[0]
    ids, lowest = generate(model(preset, dtype), ring.prompt, 8)
    assert ids == ring.expected(8)
    assert lowest > -1e-3


def test_a_prompt_of_4000_tokens_is_exact(model) -> None:
    ring = draw_rings(PRESETS["tiny"], np.random.default_rng(1), [3600])[0]
    ring = Ring(ring.tokens, ring.salt, prompt_len=4000)
    ids, _ = generate(model("tiny", "bfloat16"), ring.prompt, 16)
    assert ids == ring.expected(16)


@pytest.mark.parametrize("preset", ["d80", "d96", "d256"])
def test_other_head_dims_are_exact(model, preset: str) -> None:
    for ring in draw_rings(PRESETS[preset], np.random.default_rng(3), [13, 300]):
        ids, lowest = generate(model(preset, "bfloat16"), ring.prompt, 30)
        assert ids == ring.expected(30)
        assert lowest > -1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["tiny", "mqa"])
def test_a_fork_offers_its_two_branches_and_nothing_else(model, preset: str, dtype: str) -> None:
    for seed in range(4):
        fork = draw_fork(PRESETS[preset], np.random.default_rng(seed), 12)
        with torch.no_grad():
            logits = model(preset, dtype)(torch.tensor([fork.prompt])).logits[0, -1].float()
        p = torch.softmax(logits, -1)
        first, second = (float(p[branch[0]]) for branch in fork.branches)
        assert first + second > 0.999
        assert 0.3 < first < 0.7
        for branch in fork.branches:  # once on a branch, it is followed to its end
            cache, _, _ = prefill(model(preset, dtype), fork.prompt)
            ids, _ = decode(model(preset, dtype), cache, branch[0], len(branch) + 1)
            assert ids == [*branch, fork.fork]


def test_another_salt_is_not_found(model) -> None:
    """A prefix computed under another salt holds the right tokens and the wrong keys: the probe says SEP."""
    ring = draw_rings(PRESETS["gqa"], np.random.default_rng(5), [40])[0]
    cache, _, _ = prefill(model("gqa", "float32"), ring.prompt[:-1])
    other = Ring(ring.tokens, ring.salt + 1)
    alien, _, _ = prefill(model("gqa", "float32"), other.prompt[:-1])
    for layer, foreign in zip(cache.layers, alien.layers, strict=True):  # the body comes from the other prompt
        layer.keys[:, :, 16:32], layer.values[:, :, 16:32] = foreign.keys[:, :, 16:32], foreign.values[:, :, 16:32]
    with torch.no_grad():
        logits = model("gqa", "float32")(torch.tensor([ring.prompt[-1:]]), past_key_values=cache).logits[0, -1]
    ids, _ = decode(model("gqa", "float32"), cache, int(logits.argmax()), 40)
    assert ids[:13] == ring.expected(13)      # positions 3 … 15
    assert set(ids[13:]) == {SEP}             # from block 1 on
    found = diagnose(PRESETS["gqa"], ring, ids, block_size=16)
    assert found is not None
    assert (found.kind, found.block, found.slot) == ("not found", 1, 0)


def damage(model: LlamaForCausalLM, prompt: ProbePrompt, count: int, layer: int, kv_head: int, position: int,
           what: str) -> list[int]:
    """Greedy answer with one slot of one KV head damaged after prefill."""
    cache, token, _ = prefill(model, prompt.prompt)
    tensor = cache.layers[layer].keys if what == "key" else cache.layers[layer].values
    tensor[0, kv_head, position] *= -1
    return decode(model, cache, token, count)[0]


@pytest.mark.parametrize("preset", ["gqa", "mha", "mqa"])
@pytest.mark.parametrize("what", ["key", "value"])
def test_one_damaged_slot_is_located_exactly(model, preset: str, what: str) -> None:
    """Layer, KV head, block and slot: from the text alone, with a ring and its complement."""
    spec = PRESETS[preset]
    rng = np.random.default_rng(11)
    for trial in range(6):
        ring = draw_rings(spec, rng, [45])[0]
        layer, kv_head = int(rng.integers(1, spec.num_layers)), int(rng.integers(spec.num_kv_heads))
        position = int(rng.integers(4, 46))
        seen = []
        for prompt in (ring, complement(ring, spec)):
            ids = damage(model(preset, "float32"), prompt, len(ring.tokens) - 1, layer, kv_head, position, what)
            found = diagnose(spec, prompt, ids, block_size=16)
            if found is not None:
                seen.append(found)
                assert (found.position, found.block, found.slot) == (position, position // 16, position % 16), trial
                assert found.kv_heads == ((layer, kv_head),)
        assert seen, "neither the ring nor its complement showed the fault"


def test_a_slot_overwritten_by_another_request_names_its_owner(model) -> None:
    spec = PRESETS["gqa"]
    mine, theirs = draw_rings(spec, np.random.default_rng(2), [45, 45])
    cache, token, _ = prefill(model("gqa", "float32"), mine.prompt)
    alien, _, _ = prefill(model("gqa", "float32"), theirs.prompt)
    for layer, foreign in zip(cache.layers, alien.layers, strict=True):
        layer.values[:, :, 20] = foreign.values[:, :, 20]
    ids, _ = decode(model("gqa", "float32"), cache, token, 40)
    found = diagnose(spec, mine, ids, block_size=16, others=[theirs], names=["request B"])
    assert found is not None
    assert (found.kind, found.owner, found.owner_position) == ("foreign", "request B", 20)
    assert (found.block, found.slot) == (1, 4)
    assert "request B, position 20" in str(found)


def test_swapped_group_heads_show(model) -> None:
    """A query head mapped to the wrong KV head reads a wrong share of the value and flips its bits."""
    spec = PRESETS["gqa"]
    ring = draw_rings(spec, np.random.default_rng(9), [30])[0]
    cache, token, _ = prefill(model("gqa", "float32"), ring.prompt)
    cache.layers[2].values = cache.layers[2].values.flip(1)
    ids, _ = decode(model("gqa", "float32"), cache, token, 20)
    assert not check_answer(ring, ids).ok
    found = diagnose(spec, ring, ids, block_size=16)
    assert found is not None
    assert {layer for layer, _ in found.heads} == {2}


def test_fork_answers_are_checked_on_both_branches(model) -> None:
    fork: Fork = draw_fork(PRESETS["tiny"], np.random.default_rng(0), 10)
    answers = {branch: [*fork.branches[branch], fork.fork] for branch in (0, 1)}
    for ids in answers.values():
        assert check_answer(fork, ids).ok
    crossed = [*fork.branches[0][:4], *fork.branches[1][4:]]
    assert check_answer(fork, crossed).first_wrong == 4
