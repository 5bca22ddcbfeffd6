"""Engines that speculate, on the probe and on random models."""

from __future__ import annotations

import pytest
import torch

from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.loader import load_model
from tests.reference_engine.checkpoints import random_model
from tests.reference_engine.helpers import SPEC
from tests.reference_engine.speculation.support import speculation


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_probe):
    """Checkpoints: the probe; random ones of its vocabulary and of a small one; one with a window."""
    root = tmp_path_factory.mktemp("models")
    thin = {"num_hidden_layers": 1, "max_position_embeddings": 512}
    random_model(root / "probe-other", "Llama", thin | {"vocab_size": SPEC.vocab_size})
    random_model(root / "llama", "Llama", {})
    random_model(root / "llama-other", "Llama", thin)
    random_model(root / "mistral", "Mistral", {"sliding_window": 11})
    return {name: root / name for name in ("probe-other", "llama", "llama-other", "mistral")} | {"probe": tiny_probe}


@pytest.fixture(scope="module")
def models(folders):
    """Targets, loaded once."""
    return {name: load_model(folders[name], torch.float32, torch.device("cpu"), 256) for name in ("llama", "mistral")}


@pytest.fixture
def on_probe(make_engine, folders):
    """Engine on the probe that speculates: "off", "ngram", or with the draft model of that name."""
    return lambda how, **config: make_engine(**speculation(how, folders), **config)


@pytest.fixture
def on_random(models, parts, folders):
    """The same on a random model."""
    def make(how, target="llama", **config):
        defaults = {"max_model_len": 128, "num_blocks": 128, "block_size": 8, "check_integrity": True}
        return Engine(models[target], parts[1], EngineConfig(**defaults | speculation(how, folders) | config))

    return make
