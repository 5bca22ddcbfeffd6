"""Decodes with fixed buffers and grids, as CUDA graphs hold them; in the interpreter the pass itself stands for it."""

from __future__ import annotations

import pytest
import torch
from paged_kernels.triton_backend import plan
from paged_kernels.triton_backend.device import interpreted
from paged_kernels.triton_backend.tiles import NO_SPLIT

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
    config = {"max_model_len": 64, "num_blocks": 40, "block_size": 8} | config
    return Engine.from_folder(folder, EngineConfig(attention_backend="triton", **config), device=DEVICE)


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


def test_all_sizes_are_captured_before_the_first_request(tiny_probe):
    engine = triton_engine(tiny_probe, max_num_seqs=5)
    captured = []

    def capture(forward):
        captured.append(len(captured))
        return same_pass(forward) if interpreted() else cuda_graph(forward)

    graphs = DecodeGraphs(engine.runner.model, engine.pool.layers, engine.config, capture)
    graphs.capture_all()
    assert len(captured) == 4, "1, 2, 4 and 8 rows hold batches of 1 to 5"
    engine.runner.graphs = graphs
    asked = {engine.add(ring.prompt, greedy(4)).id: ring for ring in rings(3, 4, 5, 6, 7)}
    made = drain(engine)
    for request, ring in asked.items():
        assert_exact(ring, ids(made[request][0]), 4)
    assert len(captured) == 4


def test_no_request_needs_a_kernel_that_the_rehearsal_did_not(tiny_probe, monkeypatch):
    """By tile and geometry: all else that the kernel is compiled for is the model's. The pool stays as it was."""
    engine = triton_engine(tiny_probe, enforce_eager=True, max_model_len=160, num_blocks=60)
    compiled = set()
    launch = plan.launch_attend

    def launch_noted(tile, geometry, *rest):
        compiled.add((tile, geometry))
        launch(tile, geometry, *rest)

    monkeypatch.setattr(plan, "launch_attend", launch_noted)
    before = engine.pool.tensor.normal_().clone()
    engine.runner.rehearse(engine.config.max_model_len)
    assert engine.pool.tensor.equal(before)
    rehearsed = set(compiled)
    assert {tile.split for tile, _ in rehearsed} == {256, 2048, NO_SPLIT}  # decodes, short chunks, long ones
    compiled.clear()
    for prompt in (rings(3, 7)[0].prompt, rings(3, 30)[1].prompt, tuple(range(20, 140))):
        engine.add(prompt, greedy(3))
    drain(engine)
    assert compiled == rehearsed


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
