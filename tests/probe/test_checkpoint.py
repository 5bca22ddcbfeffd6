"""The folder on disk: complete, readable by others, and checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from pabench.errors import UsageError
from pabench.probe import PRESETS, Codec, build_checkpoint, check_checkpoint, load_spec
from pabench.probe.tensors import read_tensors


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_built_folder_checks_and_is_read_by_safetensors(tmp_path: Path, dtype: str) -> None:
    build_checkpoint(PRESETS["tiny"], tmp_path, dtype)
    assert check_checkpoint(tmp_path) == []
    assert load_spec(tmp_path) == PRESETS["tiny"]
    mine = read_tensors(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(mine)
        for name in file.keys():  # noqa: SIM118 (not a dict)
            theirs = file.get_tensor(name)
            assert str(theirs.dtype) == f"torch.{dtype}"
            assert np.array_equal(theirs.float().numpy(), mine[name])


def test_a_changed_weight_is_found(tiny_probe: Path, tmp_path: Path) -> None:
    for file in tiny_probe.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-5] ^= 0x40
    (tmp_path / "model.safetensors").write_bytes(data)
    assert any("weights differ" in problem for problem in check_checkpoint(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    assert any("cannot be read" in problem for problem in check_checkpoint(tmp_path))


def test_a_changed_config_is_found(tiny_probe: Path, tmp_path: Path) -> None:
    for file in tiny_probe.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    assert check_checkpoint(tmp_path) == ["config.json differs from what this version builds"]


def test_transformers_reads_the_tokenizer(tiny_probe: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_probe)
    ids = [0, 16, 300, 4095, 1, 2, 3]
    assert tokenizer(Codec.encode(ids)).input_ids == ids
    assert tokenizer.decode(ids) == Codec.encode(ids)
    messages = [{"role": "user", "content": "t300 t301"}, {"role": "user", "content": "t302"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "t300 t301 t302"


def test_no_probe_here(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no KV probe"):
        load_spec(tmp_path)
    (tmp_path / "probe.json").write_text("{}")
    with pytest.raises(UsageError, match="not a probe description"):
        load_spec(tmp_path)
    with pytest.raises(UsageError, match="unknown dtype"):
        build_checkpoint(PRESETS["tiny"], tmp_path, "int8")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        build_checkpoint(PRESETS["tiny"], tmp_path / "file")


@pytest.mark.parametrize("held", ["config.json", "manifest.json", "probe.json"])
def test_what_is_no_probe_is_never_written_over(tmp_path: Path, held: str) -> None:
    (tmp_path / held).write_text('{"model_type": "qwen3"}')
    (tmp_path / "model.safetensors").write_bytes(b"hours of training")
    with pytest.raises(UsageError, match=r"holds something already that is no KV probe \(.*model.safetensors"):
        build_checkpoint(PRESETS["tiny"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {held, "model.safetensors"}
    assert (tmp_path / held).read_text() == '{"model_type": "qwen3"}'
    assert (tmp_path / "model.safetensors").read_bytes() == b"hours of training"


def test_a_probe_is_built_over_another_and_over_a_broken_off_one(tmp_path: Path, tiny_probe: Path) -> None:
    build_checkpoint(PRESETS["soft"], tmp_path / "out")
    build_checkpoint(PRESETS["tiny"], tmp_path / "out")
    assert check_checkpoint(tmp_path / "out") == []
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "probe.json").write_bytes((tiny_probe / "probe.json").read_bytes())
    build_checkpoint(PRESETS["tiny"], tmp_path / "half")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "probe.gguf").touch()  # as `--gguf` leaves it where the rest could not be written
    build_checkpoint(PRESETS["tiny"], tmp_path / "gguf")
    assert check_checkpoint(tmp_path / "gguf") == []
