"""Model folders: shards are found, and folders that are no model, or another than they say, are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from pabench.errors import UsageError
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.memory.paged import PagedAllocator
from reference_engine.model.families import read_model_config
from reference_engine.model.loader import load_model
from reference_engine.model.rope import RopeConfig
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Request, SamplingParams, Sequence
from tests.reference_engine.checkpoints import Feeder, random_model


def test_shards_are_found_through_their_index(tmp_path):
    theirs = random_model(tmp_path, "Llama", {})
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    _, row = Feeder(load_model(tmp_path, torch.float32, torch.device("cpu"), 256), [[5, 6, 7]]).step(3)[0]
    with torch.inference_mode():
        torch.testing.assert_close(row, theirs(torch.tensor([[5, 6, 7]])).logits[0, -1], rtol=1e-4, atol=1e-4)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        load_model(tmp_path, torch.float32, torch.device("cpu"), 64)


def test_longrope_has_an_earlier_name():
    params = {"rope_theta": 1e4, "short_factor": [2.0] * 4, "long_factor": [3.0] * 4,
              "original_max_position_embeddings": 64}
    old, new = (RopeConfig.from_json(params | {name: kind}, 128)
                for name, kind in (("type", "su"), ("rope_type", "longrope")))
    assert old == new
    assert torch.equal(new.inverse_frequencies(8), RopeConfig().inverse_frequencies(8) / 2)


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
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is no model folder"):
        read_model_config(tmp_path)
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
