"""The GGUF file: read back by the library's own reader, and by transformers as a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from pabench.errors import UsageError
from pabench.probe import PRESETS, build_gguf
from pabench.probe.weights import build_weights


@pytest.mark.parametrize("preset", ["tiny", "d80"])
def test_transformers_reads_the_same_weights(tmp_path: Path, preset: str) -> None:
    """It undoes the order of Q and K by rules of its own."""
    spec = PRESETS[preset]
    build_gguf(spec, tmp_path / "sub" / "probe.gguf")
    file = str(tmp_path / "sub" / "probe.gguf")
    config = load_gguf_checkpoint(file)["config"]
    model = LlamaForCausalLM(LlamaConfig(**config))
    found = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
    expected = build_weights(spec)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name].numpy(), tensor), name
    assert (config["num_key_value_heads"], config["head_dim"]) == (spec.num_kv_heads, spec.head_dim)
    assert config["rope_theta"] == pytest.approx(spec.rope_theta)


def test_every_word_is_one_piece(tmp_path: Path) -> None:
    build_gguf(PRESETS["tiny"], tmp_path / "probe.gguf")
    fields = GGUFReader(tmp_path / "probe.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[:5] == ["<sep>", "<eos>", "<pad>", "<unk>", "▁t4"]
    assert tokens[300] == "▁t300"
    assert len(tokens) == PRESETS["tiny"].vocab_size
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.add_eos_token"].contents() is False


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the probe to"):
        build_gguf(PRESETS["tiny"], tmp_path / "file" / "probe.gguf")
