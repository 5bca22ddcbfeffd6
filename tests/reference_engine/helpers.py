"""Requests on the probe, and checks of what came back."""

from __future__ import annotations

import numpy as np

from pabench.probe import PRESETS, check_answer, draw_rings
from reference_engine.scheduling.sequence import SamplingParams

SPEC = PRESETS["tiny"]


def greedy(max_tokens, **more):
    return SamplingParams(max_tokens=max_tokens, **{"ignore_eos": True, **more})


def rings(*lengths, seed=0):
    return draw_rings(SPEC, np.random.default_rng(seed), list(lengths))


def drain(engine, *, max_steps=20_000):
    """Step to the end; request -> choice -> outputs."""
    made = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return made
        for request, output in engine.step():
            made.setdefault(request.id, {}).setdefault(output.index, []).append(output)
    raise AssertionError(f"still busy after {max_steps} steps")


def ids(outputs):
    return [output.token_id for output in outputs]


def assert_exact(ring, token_ids, length):
    check = check_answer(ring, token_ids)
    assert (check.verified, check.wrong) == (length, 0), check


def assert_idle(engine):
    snapshot = engine.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.kv_usage) == (0, 0, 0.0)
    split = snapshot.split
    assert (split.token_states, split.reserved, split.internal_waste) == (0, 0, 0)
    assert split.free == engine.allocator.num_blocks * engine.allocator.block_size
