"""Decodes with fixed buffers and grids, as CUDA graphs hold them; in the interpreter the pass itself stands for it."""

from __future__ import annotations

import pytest
import torch
from paged_kernels.triton_backend.device import interpreted

from pabench.errors import UsageError
from reference_engine import runner as runner_module
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.graphs import DecodeGraphs, cuda_graph
from reference_engine.runner import attention_backend
from tests.reference_engine.helpers import assert_exact, drain, greedy, ids, rings

DEVICE = "cpu" if interpreted() else "cuda"


def same_pass(forward):
    return forward


def triton_engine(folder, **config):
    return Engine.from_folder(folder, EngineConfig(
        max_model_len=64, num_blocks=40, block_size=8, attention_backend="triton", **config), device=DEVICE)


def test_batches_that_shrink_and_grow_are_exact(tiny_probe):
    """A graph of 4 rows sees 3, 4, then fewer sequences: padding of one step must not be read in the next."""
    engine = triton_engine(tiny_probe)
    sizes = []

    class Watched(DecodeGraphs):
        def run(self, batch):
            sizes.append(len(batch.contexts))
            return super().run(batch)

    engine.runner.graphs = Watched(engine.runner.model, engine.pool.layers, engine.config,
                                   same_pass if interpreted() else cuda_graph)
    asked = {}
    for ring, tokens in zip(rings(3, 9, 17, 22), (3, 12, 7, 12), strict=True):
        asked[engine.add(ring.prompt, greedy(tokens)).id] = ring, tokens
    made = drain(engine)
    for request, (ring, tokens) in asked.items():
        assert_exact(ring, ids(made[request][0]), tokens)
    assert {4, 3, 2} <= set(sizes), "the graphs were not used at every size"


def test_a_swapped_and_quantised_cache_in_triton_is_exact(tiny_probe):
    engine = triton_engine(tiny_probe, preemption="swap", num_swap_blocks=40, kv_dtype="int8", speculation="ngram")
    asked = {engine.add(ring.prompt, greedy(10)).id: ring for ring in rings(5, 20)}
    made = drain(engine)
    for request, ring in asked.items():
        assert_exact(ring, ids(made[request][0]), 10)


def test_what_is_no_gpu_is_refused_without_the_interpreter(monkeypatch):
    monkeypatch.setattr("paged_kernels.triton_backend.device.interpreted", lambda: False)
    for name in ("cpu", "mps", "xpu"):
        with pytest.raises(UsageError, match=f"'triton' runs on a GPU .* the tensors are on {name}"):
            attention_backend("triton", torch.device(name))
    assert runner_module.attention_backend("auto", torch.device("cpu")) == "numba"
