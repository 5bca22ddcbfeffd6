"""Engines on the smallest probe, and servers of them."""

from __future__ import annotations

import pytest
import torch

from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.loader import load_model
from reference_engine.serving.tokenizer import Tokenizer
from tests.reference_engine.http import serve


@pytest.fixture(scope="session")
def parts(tiny_probe):
    """Model and tokenizer, loaded once: engines only read them."""
    return load_model(tiny_probe, torch.float32, torch.device("cpu"), 1024), Tokenizer(tiny_probe)


@pytest.fixture
def make_engine(parts):
    """Engine on the probe that checks its books after every step."""

    def make(**config):
        defaults = {"max_model_len": 512, "num_blocks": 256, "check_integrity": True}
        return Engine(*parts, EngineConfig(**{**defaults, **config}))

    return make


@pytest.fixture
def with_server(make_engine):
    """Run a coroutine function against a fresh server."""

    def run(scenario, **config):
        serve(make_engine(**config), scenario)

    return run
