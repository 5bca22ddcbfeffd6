"""A random Llama, where beams end early, and engines on it."""

from __future__ import annotations

import pytest
import torch
import transformers

from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.loader import load_model
from reference_engine.serving.tokenizer import Tokenizer
from tests.reference_engine.beam.support import EOS, MAX_LEN, VOCAB


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tiny_probe):
    """transformers' model, ours of the same weights, and any tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4, pad_token_id=0, bos_token_id=1,
        eos_token_id=list(EOS),
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    ours = load_model(folder, torch.float32, torch.device("cpu"), MAX_LEN)
    return theirs, ours, Tokenizer(tiny_probe)


@pytest.fixture
def serve(llama):
    """An engine on the random Llama."""

    def make(**config):
        return Engine(*llama[1:], EngineConfig(**{
            "max_model_len": MAX_LEN, "block_size": 4, "num_blocks": 512, "check_integrity": True, **config}))

    return make
