"""Logits equal to transformers' on small random checkpoints; folders that are no model are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pabench.errors import UsageError
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine, build_allocator
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.pool import KVPool
from reference_engine.model.config import ModelConfig, RopeConfig
from reference_engine.model.loader import load_model
from reference_engine.runner import Runner
from reference_engine.scheduling.scheduler import Scheduler, Step
from reference_engine.scheduling.sequence import Request, SamplingParams, Sequence

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
CASES = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "group-of-three": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32},
    "head-dim-explicit": {"num_key_value_heads": 2, "head_dim": 40},
    "tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "biases": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "llama3-rope": {"num_key_value_heads": 2, "rope_parameters": LLAMA3},
    "linear-rope": {"num_key_value_heads": 2,
                    "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "theta": {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
}


def random_llama(folder, *, dtype=torch.float32, shard=None, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 199, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
             "num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.2}
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).to(dtype).eval()
    for name, tensor in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(tensor, mean=float("norm" in name), std=0.3)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return model


def our_logits(folder, prompts, chunks, dtype=torch.float32):
    """Logits of each prompt's positions where a chunk ends, all prompts in one batch, fed in chunks."""
    model = load_model(folder, dtype, torch.device("cpu"), 256)
    config = EngineConfig(max_model_len=256, block_size=8, num_blocks=64)
    allocator = build_allocator(config)
    runner = Runner(model, KVPool(model.config, 64, 8, dtype, torch.device("cpu")), allocator)
    seqs = []
    for prompt in prompts:
        request = Request(tuple(prompt), SamplingParams(max_tokens=1), 0, 0.0)
        seqs.append(Sequence(request, 0, [], 0, None))
        allocator.allocate(seqs[-1].id, len(prompt), len(prompt))
    out = [[] for _ in prompts]
    for size in chunks:
        step, owners = Step(), []
        for i, (seq, prompt) in enumerate(zip(seqs, prompts, strict=True)):
            seq.tokens += prompt[len(seq.tokens) : len(seq.tokens) + size]
            if len(seq.tokens) > seq.num_computed:
                step.add(seq, len(seq.tokens) - seq.num_computed)
                owners.append(i)
        for i, row, seq in zip(owners, runner.run(step), step.sequences, strict=True):
            seq.num_computed = len(seq.tokens)
            out[i].append((seq.num_computed - 1, row))
    return out


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    theirs = random_llama(tmp_path, **CASES[case])
    torch.manual_seed(1)
    prompts = [torch.randint(0, 199, (n,)).tolist() for n in (70, 33, 16, 1)]
    ours = our_logits(tmp_path, prompts, [16, 1, 1, 30, 1, 100])
    with torch.inference_mode():
        for prompt, rows in zip(prompts, ours, strict=True):
            reference = theirs(torch.tensor([prompt])).logits[0]
            for position, row in rows:
                torch.testing.assert_close(row, reference[position], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_near_to_float32_as_transformers(tmp_path, dtype):
    wide = random_llama(tmp_path / "wide", num_key_value_heads=2)
    theirs = random_llama(tmp_path / "low", num_key_value_heads=2, dtype=dtype)
    prompt = torch.arange(2, 60).tolist()
    ((_, row),) = our_logits(tmp_path / "low", [prompt], [100], dtype)[0]
    with torch.inference_mode():
        exact = wide(torch.tensor([prompt])).logits[0, -1]
        their_error = (theirs(torch.tensor([prompt])).logits[0, -1].float() - exact).abs().max()
    assert (row - exact).abs().max() <= 2 * their_error + 1e-3


def test_shards_are_found_through_their_index(tmp_path):
    theirs = random_llama(tmp_path, shard="60KB", num_key_value_heads=2)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ((_, row),) = our_logits(tmp_path, [[5, 6, 7]], [3])[0]
    with torch.inference_mode():
        torch.testing.assert_close(row, theirs(torch.tensor([[5, 6, 7]])).logits[0, -1], rtol=1e-4, atol=1e-4)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        load_model(tmp_path, torch.float32, torch.device("cpu"), 64)


def test_rope_is_read_from_old_and_new_configs():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}
    old = RopeConfig.from_json({"rope_theta": 500000.0, "rope_scaling": scaling})
    new = RopeConfig.from_json({"rope_parameters": {**scaling, "rope_theta": 500000.0}})
    assert old == new
    assert RopeConfig.from_json({"rope_theta": 7.0}) == RopeConfig(theta=7.0)
    assert RopeConfig.from_json({"rope_theta": 7.0, "rope_scaling": None}).theta == 7.0
    with pytest.raises(UsageError, match="'yarn' is not supported"):
        RopeConfig.from_json({"rope_scaling": {"type": "yarn", "factor": 2.0}})


@pytest.fixture
def broken(tiny_probe, tmp_path):
    """A copy of the probe whose config.json can be changed."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_probe, folder)

    def change(**fields):
        path = folder / "config.json"
        config = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
        return folder

    return change


@pytest.mark.parametrize(("fields", "message"), [
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
    ({"architectures": ...}, "no architecture"),
    ({"num_hidden_layers": ...}, "incomplete"),
    ({"num_hidden_layers": "four"}, "malformed|makes no sense"),
    ({"num_key_value_heads": 3}, "do not divide"),
    ({"hidden_act": "gelu"}, "'gelu'"),
    ({"quantization_config": {"bits": 4}}, "quantised"),
    ({"num_hidden_layers": 9}, r"lacks \d+ tensors"),
    ({"vocab_size": 5000}, "has shape"),
])
def test_a_config_that_cannot_be_served_is_named(broken, fields, message):
    with pytest.raises(UsageError, match=message):
        load_model(broken(**fields), torch.float32, torch.device("cpu"), 64)


def test_folders_that_are_no_model(tmp_path, tiny_probe):
    with pytest.raises(UsageError, match="is no model folder"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is no model folder"):
        ModelConfig.from_folder(tmp_path)
    shutil.copy(tiny_probe / "config.json", tmp_path)
    with pytest.raises(UsageError, match=r"neither model\.safetensors"):
        load_model(tmp_path, torch.float32, torch.device("cpu"), 64)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        load_model(tmp_path, torch.float32, torch.device("cpu"), 64)
    shutil.copy(tiny_probe / "model.safetensors", tmp_path)
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        Engine.from_folder(tmp_path, EngineConfig(max_model_len=64))


@pytest.mark.parametrize(("fields", "message"), [
    ({"block_size": 0, "num_blocks": 0}, "block_size is 0.*num_blocks is 0"),
    ({"kv": "linked"}, "'linked'"),
    ({"max_num_batched_tokens": 8}, "below max_num_seqs"),
    ({"kv": "contiguous", "num_blocks": 3}, "hold no reservation"),
])
def test_engine_configs_are_checked_at_once(fields, message):
    with pytest.raises(UsageError, match=message):
        EngineConfig(**{"max_model_len": 64, **fields})


def test_scheduler_is_independent_of_the_model():
    """The seam that simulation needs: scheduler and allocator run without any tensor."""
    scheduler = Scheduler(EngineConfig(max_model_len=64, num_blocks=8), PagedAllocator(8, 16))
    request = Request((1, 2, 3), SamplingParams(max_tokens=4), 0, 0.0)
    request.sequences.append(Sequence(request, 0, [1, 2, 3], 0, None))
    scheduler.add(request)
    assert scheduler.schedule().num_new == [3]
