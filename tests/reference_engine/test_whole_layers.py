"""Small batches through layers compiled whole: what the layers give one operation at a time, whatever else is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged_kernels import plan_attention
from paged_kernels.numba_layer import MAX_TOKENS, NumbaLayers

from reference_engine.memory.pool import KVPool
from reference_engine.model.loader import load_model
from reference_engine.model.transformer import StepInput
from tests.reference_engine.checkpoints import random_model
from tests.reference_engine.helpers import assert_exact, drain, greedy, ids, rings

BLOCK_SIZE, NUM_BLOCKS = 4, 64
CPU = torch.device("cpu")
# What differs between the models: sizes that are no multiple of anything, groups of heads, how much of a head turns, a
# window. No family with a soft cap of scores has layers that can run whole, so one model is given a cap.
MODELS = {
    "llama": ("Llama", {}),
    "uneven": ("Llama", {"hidden_size": 63, "intermediate_size": 37, "head_dim": 10, "num_attention_heads": 3,
                         "num_key_value_heads": 1}),
    "window": ("Mistral", {"sliding_window": 6}),
    "half a head turns": ("Phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                       "partial_rotary_factor": 0.5}}),
    "soft cap": ("Llama", {}),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model(folder, *MODELS[request.param])
    made = load_model(folder, torch.float32, CPU, 128)
    if request.param == "soft cap":
        made.config = replace(made.config, attention_soft_cap=2.0)
    return made


def pool_of(model):
    """A pool whose every slot holds something."""
    pool = KVPool(model.config, NUM_BLOCKS, BLOCK_SIZE, torch.float32, CPU)
    pool.tensor.copy_(torch.randn(pool.tensor.shape, generator=torch.Generator().manual_seed(3)))
    return pool


def starts_of(counts):
    return torch.tensor([0, *counts]).cumsum(0)


def batch_of(contexts, counts):
    """Sequences of their own blocks, each with its last counts[i] tokens new."""
    width = -(-max(contexts) // BLOCK_SIZE)
    order = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(4))
    tables = order[: width * len(contexts)].view(len(contexts), width)
    rows = [(seq, p) for seq, (context, new) in enumerate(zip(contexts, counts, strict=True))
            for p in range(context - new, context)]
    owner, positions = torch.tensor(rows).unbind(1)
    slots = tables[owner, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    tokens = (owner * 31 + positions * 7) % 190 + 3

    def step(seqs=None):
        """The step of all sequences, or of these alone."""
        at = torch.arange(len(contexts)) if seqs is None else torch.tensor(seqs)
        mine = torch.isin(owner, at)
        counts_of = [counts[i] for i in at]
        plan = plan_attention(tables[at], torch.tensor(contexts)[at], starts_of(counts_of), BLOCK_SIZE, backend="numba")
        return StepInput(tokens[mine], positions[mine], slots[mine], torch.arange(int(mine.sum())), plan)

    return step


@pytest.mark.parametrize(("contexts", "counts"), [
    ((1,), (1,)), ((9, 17, 4, 30, 8), (1, 1, 1, 1, 1)), ((12, 20, 5), (3, 8, 1)), ((9,) * 12, (1, 2) * 6),
])
def test_whole_layers_give_what_single_operations_give(model, contexts, counts):
    step = batch_of(contexts, counts)
    pools = pool_of(model), pool_of(model)
    assert step().plan.whole_layers(1 << 16) is not None
    assert step().plan.whole_layers(1 << 25) is None  # it multiplies too much
    assert len(model.whole_layers(pools[0].layers)) == len(model.layers)
    logits = [model.forward(step(), pool.layers, model.whole_layers(pool.layers) if whole else ())
              for whole, pool in enumerate(pools)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(pool.tensor for pool in pools), rtol=1e-4, atol=1e-5)


def test_no_bit_depends_on_what_else_is_in_the_batch(model):
    counts = 1, 2, 1, 8, 1, 3, 1
    step, starts = batch_of((9, 17, 4, 30, 8, 12, 23), counts), starts_of(counts)
    pool = pool_of(model)
    together = model.forward(step(), pool.layers, model.whole_layers(pool.layers))
    for seq in range(7):
        own = pool_of(model)
        alone = model.forward(step([seq]), own.layers, model.whole_layers(own.layers))
        # The logits are a BLAS's product, which makes no such promise.
        torch.testing.assert_close(alone, together[starts[seq] : starts[seq + 1]], rtol=1e-4, atol=1e-5)
        slots = step([seq]).slot_mapping
        for mine, all_of_them in zip(own.layers, pool.layers, strict=True):
            assert torch.equal(mine.key.flatten(0, 1)[slots], all_of_them.key.flatten(0, 1)[slots])
            assert torch.equal(mine.value.flatten(0, 1)[slots], all_of_them.value.flatten(0, 1)[slots])


def test_padding_is_written_nowhere_and_wrong_places_are_refused(model):
    step = batch_of((9, 17), (1, 1))
    pool = pool_of(model)
    before, whole = pool.tensor.clone(), model.whole_layers(pool.layers)
    made = step()
    made.slot_mapping.fill_(-1)
    model.forward(made, pool.layers, whole)
    assert torch.equal(pool.tensor, before)
    made.slot_mapping[1] = NUM_BLOCKS * BLOCK_SIZE
    with pytest.raises(ValueError, match=f"written to slot {NUM_BLOCKS * BLOCK_SIZE} of {NUM_BLOCKS * BLOCK_SIZE}"):
        model.forward(made, pool.layers, whole)
    assert torch.equal(pool.tensor, before)
    both, one = (
        plan_attention(torch.tensor([[0], [NUM_BLOCKS]]), torch.tensor([2, 2]), torch.tensor(starts), BLOCK_SIZE,
                       backend="numba") for starts in ([0, 1, 2], [0, 1, 1]))
    made = StepInput(torch.tensor([5, 5]), torch.tensor([1, 1]), torch.tensor([1, 9]), torch.arange(2), both)
    with pytest.raises(ValueError, match="block table of sequence 1"):
        model.forward(made, pool.layers, whole)
    made = StepInput(torch.tensor([5]), torch.tensor([1]), torch.tensor([1]), torch.arange(1), one)
    assert model.forward(made, pool.layers, whole).isfinite().all(), "no row asks for the second table"


@pytest.mark.parametrize(("family", "changes", "kv_dtype", "weight_dtype"), [
    ("Qwen2", {}, torch.float32, "auto"),                   # biases
    ("Qwen3", {"head_dim": 16}, torch.float32, "auto"),     # norms of heads
    ("Gemma2", {"head_dim": 16}, torch.float32, "auto"),    # another activation
    ("SmolLM3", {"num_hidden_layers": 5}, torch.float32, "auto"),  # a layer without positions
    ("Llama", {}, torch.bfloat16, "auto"),
    ("Llama", {}, torch.float32, "int8"),
    ("Llama", {"hidden_size": 1024, "intermediate_size": 1028}, torch.float32, "auto"),  # weights that are not small
])
def test_what_no_whole_layer_can_do_is_not_given_to_one(tmp_path, family, changes, kv_dtype, weight_dtype):
    random_model(tmp_path, family, changes)
    made = load_model(tmp_path, torch.float32, CPU, 64, weight_dtype)
    assert made.whole_layers(KVPool(made.config, 4, 4, kv_dtype, CPU).layers) == []


@pytest.mark.parametrize("eager", [False, True])
def test_an_engine_uses_them_unless_it_is_eager(make_engine, monkeypatch, eager):
    seen, run = [], NumbaLayers.run

    def counted(self, hidden, *rest):
        seen.append(len(hidden))
        run(self, hidden, *rest)

    monkeypatch.setattr(NumbaLayers, "run", counted)
    engine = make_engine(enforce_eager=eager)
    asked = {engine.add(ring.prompt, greedy(12)).id: ring for ring in rings(3, 40, 7)}
    made = drain(engine)
    for request, ring in asked.items():
        assert_exact(ring, ids(made[request][0]), 12)
    assert bool(seen) != eager
    assert all(size <= MAX_TOKENS for size in seen)
