"""The probe with a sliding window: exact under transformers, and prompts whose decoys are never to be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralForCausalLM

from pabench.errors import UsageError
from pabench.probe import (
    PRESETS,
    Decoyed,
    Ring,
    build_checkpoint,
    build_gguf,
    check_answer,
    diagnose,
    draw_at_the_edge,
    draw_decoyed,
    draw_fork,
    draw_rings,
    exact_logprob,
    load_spec,
    shortest_decoyed,
)

SPEC = PRESETS["window"]
WINDOW = SPEC.window or 0
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Load = Callable[..., MistralForCausalLM]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Load:
    root = tmp_path_factory.mktemp("windowed")

    @lru_cache(maxsize=3)
    def load(dtype: str = "float32", window: int | None = WINDOW) -> MistralForCausalLM:
        folder: Path = root / dtype
        if not folder.exists():
            build_checkpoint(SPEC, folder, dtype)
        return MistralForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], sliding_window=window).eval()

    return load


def answer(model: MistralForCausalLM, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy ids and their log-probabilities."""
    with torch.no_grad():
        out = model.generate(torch.tensor([list(prompt)]), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                             output_logits=True, return_dict_in_generate=True)
    best = [torch.log_softmax(logits[0].float(), -1).max() for logits in out.logits]
    return out.sequences[0, len(prompt):].tolist(), [float(value) for value in best]


def followers(ids: Sequence[int], window: int) -> set[int]:
    """What stands behind earlier places of the last token, within `window` positions: all that may be said."""
    first = max(1, len(ids) - window)
    return {ids[at] for at in range(first, len(ids)) if ids[at - 1] == ids[-1]}


def seen(prompt: Ring | Decoyed, count: int, window: int) -> list[set[int]]:
    """The followers of each of the next `count` tokens."""
    ids = [*prompt.prompt, *prompt.expected(count)]
    return [followers(ids[:end], window) for end in range(len(prompt.prompt), len(ids))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rings_are_exact_up_to_the_far_edge(model: Load, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for lap, more in ((3, 0), (30, 40), (WINDOW - 1, 5), (WINDOW, 0), (WINDOW, 17)):
        ring = draw_rings(SPEC, rng, [lap])[0]
        ring = replace(ring, prompt_len=len(ring.prompt) + more)
        count = 2 * WINDOW + 9 if dtype == "float32" else WINDOW
        ids, logprobs = answer(model(dtype), ring.prompt, count)
        assert ids == ring.expected(count)
        assert min(logprobs) > -1e-3


def test_what_is_a_window_away_is_not_seen(model: Load) -> None:
    ring = draw_rings(SPEC, np.random.default_rng(2), [WINDOW + 1])[0]
    ids, _ = answer(model(), ring.prompt, 8)
    assert check_answer(ring, ids).verified == 0
    assert answer(model(window=WINDOW + 1), ring.prompt, 8)[0] == ring.expected(8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoys_are_not_said(model: Load, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for prompt in draw_decoyed(SPEC, rng, 20, 2):
        ids, logprobs = answer(model(dtype), prompt.prompt, 24)
        assert ids == prompt.expected(24)
        assert min(logprobs) > -1e-3
        if dtype == "float32":
            far = answer(model(window=None), prompt.prompt, 1)[0]
            assert far == [prompt.expected(1)[0] ^ (SPEC.vocab_size - 1)]
    prompt = draw_at_the_edge(SPEC, rng, 5)
    ids, logprobs = answer(model(dtype), prompt.prompt, 24)
    assert ids == prompt.expected(24)
    assert min(logprobs) > -1e-3


def test_one_position_too_many_makes_every_second_token_uncertain(model: Load) -> None:
    prompt = draw_at_the_edge(SPEC, np.random.default_rng(4), 0)
    _, logprobs = answer(model(window=WINDOW + 1), prompt.prompt, 1)
    assert logprobs[0] < -5


@given(st.integers(1, WINDOW - 1), st.integers(1, 4), st.none() | st.integers(400, 900), st.integers(0, 2**32 - 1))
def test_all_that_is_seen_is_the_ring(decoys: int, turns: int, length: int | None, seed: int) -> None:
    turns = min(turns, decoys)
    rings = draw_decoyed(SPEC, np.random.default_rng(seed), decoys, turns, length)
    count = WINDOW + 8
    assert len({ring.shared for ring in rings}) == 1
    for ring in rings:
        assert seen(ring, count, WINDOW) == [{token} for token in ring.expected(count)]
        # Further away stand more decoys than rings, of the first answers at least.
        assert all(len(found) == 2 for found in seen(ring, decoys // turns, 10**6))
        if length is None:
            assert len(ring.prompt) == shortest_decoyed(SPEC, decoys)
        else:
            shortest = shortest_decoyed(SPEC, decoys)
            assert max(shortest, length - 2 * decoys + 1) <= len(ring.prompt) <= max(shortest, length)
    # One position more shows the first ring the last decoy.
    assert len(seen(rings[0], 1, WINDOW + 1)[0]) == 2


@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_decoys_at_the_edge_have_just_left(lead: int, seed: int) -> None:
    prompt = draw_at_the_edge(SPEC, np.random.default_rng(seed), lead)
    count = WINDOW // 3
    assert len(prompt.prompt) == 4 + WINDOW + lead
    assert seen(prompt, WINDOW, WINDOW) == [{token} for token in prompt.expected(WINDOW)]
    assert [len(found) for found in seen(prompt, count, WINDOW + 1)] == [2 - at % 2 for at in range(count)]


def test_a_failure_tells_at_which_edge() -> None:
    ring = draw_rings(SPEC, np.random.default_rng(5), [WINDOW])[0]
    ring = replace(ring, prompt_len=WINDOW + 19)
    ids = ring.expected(9)
    ids[2] = ring.tokens[(ring.tokens.index(ids[2]) + 30) % WINDOW]
    found = diagnose(SPEC, ring, ids, block_size=16)
    assert found is not None
    assert found.position == len(ring.prompt) + 2 - WINDOW  # the latest place, not the ring's first
    assert found.hint.startswith(f"the first position of the window of {WINDOW} tokens was not read")
    prompt = draw_decoyed(SPEC, np.random.default_rng(6), 10)[0]
    ids = prompt.expected(9)
    ids[3] ^= SPEC.vocab_size - 1
    found = diagnose(SPEC, prompt, ids, block_size=16)
    assert found is not None
    assert found.hint.startswith(f"what had left the window of {WINDOW} tokens was read")
    ids[3] = prompt.expected(40)[20]  # stands in the window: nothing is said of its edges
    found = diagnose(SPEC, prompt, ids, block_size=16)
    assert found is not None
    assert "window" not in found.hint


def test_it_is_read_back_and_says_what_it_cannot_be(tmp_path: Path) -> None:
    build_checkpoint(SPEC, tmp_path / "probe")
    assert load_spec(tmp_path / "probe") == SPEC
    assert exact_logprob(SPEC) == pytest.approx(0.0, abs=1e-6)
    assert draw_fork(SPEC, np.random.default_rng(0), 5).salt in SPEC.salt_ids  # the same prompts for all presets
    with pytest.raises(UsageError, match="has a sliding window, which llama"):
        build_gguf(SPEC, tmp_path / "probe.gguf")
    with pytest.raises(UsageError, match="leaves no salt to be seen"):
        replace(SPEC, salt_code_dims=8, token_code_dims=40)


@pytest.mark.parametrize(("draw", "complaint"), [
    (lambda rng: draw_decoyed(PRESETS["gqa"], rng, 3), "serve the preset 'window'"),
    (lambda rng: draw_decoyed(SPEC, rng, WINDOW), "at most a lap"),
    (lambda rng: draw_decoyed(SPEC, rng, 2, 3), "3 rings behind decoys of 2"),
    (lambda rng: draw_at_the_edge(SPEC, rng, -1), "a lead of -1"),
    (lambda rng: draw_at_the_edge(SPEC, rng, 1800), "without their complements"),
    (lambda rng: Decoyed(Ring((300, 301), 16, lead=(400,)), ()), "no lead of its own"),
])
def test_prompts_that_cannot_be_are_refused(draw: Callable[[np.random.Generator], object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        draw(np.random.default_rng(0))
