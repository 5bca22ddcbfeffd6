"""The probe under transformers: exact in every dtype and preset, and a damaged cache slot is located exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Batch:
    """Greedy answers to several prompts, token by token with the cache that prefill filled; shorter ones padded on the
    left, so that all end together.
    """

    def __init__(self, model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]]) -> None:
        self.model, self.cache = model, DynamicCache()
        width = max(map(len, prompts))
        self.mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.lowest = 0.0  # the lowest log-probability of a token taken
        self._take(torch.tensor([[SEP] * (width - len(each)) + list(each) for each in prompts]))

    def _take(self, tokens: torch.Tensor) -> None:
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        with torch.no_grad():
            out = self.model(tokens, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache,
                             logits_to_keep=1)
        self.logits = out.logits[:, -1].float()  # [prompts, vocabulary]
        best = torch.log_softmax(self.logits, -1).max(-1)
        self.lowest = min(self.lowest, float(best.values.min()))
        for ids, token in zip(self.ids, best.indices.tolist(), strict=True):
            ids.append(token)

    def decode(self, count: int) -> list[list[int]]:
        """`count` tokens behind each prompt."""
        while len(self.ids[0]) < count:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
            self._take(torch.tensor([ids[-1:] for ids in self.ids]))
        return self.ids


def check(model: LlamaForCausalLM, rings: Sequence[Ring], count: int) -> None:
    """Every one of `count` tokens behind each ring is right, and certain."""
    batch = Batch(model, [ring.prompt for ring in rings])
    assert batch.decode(count) == [ring.expected(count) for ring in rings]
    assert batch.lowest > -1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["tiny", "gqa", "mqa", "mha"])
def test_rings_are_exact_around_block_edges(model, preset: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    # prompt = ring + 3 tokens: lengths just below, at and above multiples of 16 and 32
    for lengths, laps in (([12, 13, 14, 28, 29, 30], 2), ([61, 62], 1)):  # the second lap reads what decoding wrote
        check(model(preset, dtype), draw_rings(PRESETS[preset], rng, lengths), laps * max(lengths) + 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("preset", "length"), [("tiny", 3500), ("gqa", 3500), ("mqa", 2000), ("mha", 1000)])
def test_long_rings_are_exact(model, preset: str, length: int, dtype: str) -> None:
    check(model(preset, dtype), draw_rings(PRESETS[preset], np.random.default_rng(length), [length]), 8)


def test_a_prompt_of_4000_tokens_is_exact(model) -> None:
    ring = draw_rings(PRESETS["tiny"], np.random.default_rng(1), [3600])[0]
    check(model("tiny", "bfloat16"), [Ring(ring.tokens, ring.salt, prompt_len=4000)], 16)


@pytest.mark.parametrize("preset", ["d80", "d96", "d256"])
def test_other_head_dims_are_exact(model, preset: str) -> None:
    for ring in draw_rings(PRESETS[preset], np.random.default_rng(3), [13, 300]):
        check(model(preset, "bfloat16"), [ring], 30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["tiny", "mqa"])
def test_a_fork_offers_its_two_branches_and_nothing_else(model, preset: str, dtype: str) -> None:
    forks = [draw_fork(PRESETS[preset], np.random.default_rng(seed), 12) for seed in range(4)]
    batch = Batch(model(preset, dtype), [fork.prompt for fork in forks for _ in fork.branches])
    ways = [(fork, branch) for fork in forks for branch in fork.branches]
    for row, (fork, branch) in enumerate(ways):
        first, second = (float(torch.softmax(batch.logits[row], -1)[each[0]]) for each in fork.branches)
        assert first + second > 0.999
        assert 0.3 < first < 0.7
        batch.ids[row] = [branch[0]]  # once on a branch, it is followed to its end
    assert batch.decode(len(ways[0][1]) + 1) == [[*branch, fork.fork] for fork, branch in ways]


def test_another_salt_is_not_found(model) -> None:
    """A prefix computed under another salt holds the right tokens and the wrong keys: the probe says SEP."""
    ring = draw_rings(PRESETS["gqa"], np.random.default_rng(5), [40])[0]
    other = Ring(ring.tokens, ring.salt + 1)
    both = Batch(model("gqa", "float32"), [ring.prompt[:-1], other.prompt[:-1]])
    for layer in both.cache.layers:  # the body comes from the other prompt
        layer.keys[0, :, 16:32], layer.values[0, :, 16:32] = layer.keys[1, :, 16:32], layer.values[1, :, 16:32]
    both.ids = [[ring.prompt[-1]], [other.prompt[-1]]]
    ids = both.decode(41)[0][1:]
    assert ids[:13] == ring.expected(13)      # positions 3 … 15
    assert set(ids[13:]) == {SEP}             # from block 1 on
    found = diagnose(PRESETS["gqa"], ring, ids, block_size=16)
    assert found is not None
    assert (found.kind, found.block, found.slot) == ("not found", 1, 0)


@pytest.mark.parametrize("preset", ["gqa", "mha", "mqa"])
@pytest.mark.parametrize("what", ["key", "value"])
def test_one_damaged_slot_is_located_exactly(model, preset: str, what: str) -> None:
    """Layer, KV head, block and slot: from the text alone, with a ring and its complement."""
    spec = PRESETS[preset]
    rng = np.random.default_rng(11)
    rings = draw_rings(spec, rng, [45] * 6)
    places = [(int(rng.integers(1, spec.num_layers)), int(rng.integers(spec.num_kv_heads)), int(rng.integers(4, 46)))
              for _ in rings]
    pairs = [prompt for ring in rings for prompt in (ring, complement(ring, spec))]
    batch = Batch(model(preset, "float32"), [prompt.prompt for prompt in pairs])
    for row in range(len(pairs)):
        layer, kv_head, position = places[row // 2]
        kept = batch.cache.layers[layer]
        (kept.keys if what == "key" else kept.values)[row, kv_head, position] *= -1
    seen = [0] * len(rings)
    for row, ids in enumerate(batch.decode(44)):
        layer, kv_head, position = places[row // 2]
        found = diagnose(spec, pairs[row], ids, block_size=16)
        if found is not None:
            seen[row // 2] += 1
            assert (found.position, found.block, found.slot) == (position, position // 16, position % 16), row
            assert found.kv_heads == ((layer, kv_head),)
    assert all(seen), "neither a ring nor its complement showed the fault"


def test_a_slot_overwritten_by_another_request_names_its_owner(model) -> None:
    spec = PRESETS["gqa"]
    mine, theirs = draw_rings(spec, np.random.default_rng(2), [45, 45])
    both = Batch(model("gqa", "float32"), [mine.prompt, theirs.prompt])
    for layer in both.cache.layers:
        layer.values[0, :, 20] = layer.values[1, :, 20]
    found = diagnose(spec, mine, both.decode(40)[0], block_size=16, others=[theirs], names=["request B"])
    assert found is not None
    assert (found.kind, found.owner, found.owner_position) == ("foreign", "request B", 20)
    assert (found.block, found.slot) == (1, 4)
    assert "request B, position 20" in str(found)


def test_swapped_group_heads_show(model) -> None:
    """A query head mapped to the wrong KV head reads a wrong share of the value and flips its bits."""
    spec = PRESETS["gqa"]
    ring = draw_rings(spec, np.random.default_rng(9), [30])[0]
    batch = Batch(model("gqa", "float32"), [ring.prompt])
    batch.cache.layers[2].values = batch.cache.layers[2].values.flip(1)
    ids = batch.decode(20)[0]
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
