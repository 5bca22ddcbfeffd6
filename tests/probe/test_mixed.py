"""The probe with windows in some layers: exact under transformers, and wrong where one kind of layer sees amiss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pabench.errors import UsageError
from pabench.probe import (
    PRESETS,
    Parted,
    build_checkpoint,
    build_gguf,
    check_checkpoint,
    diagnose,
    draw_parted,
    load_spec,
    longest_parted,
    shortest_parted,
)

SPEC = PRESETS["mixed"]
WINDOW = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed")
    build_checkpoint(SPEC, out)
    return out


def load(folder: Path, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def answer(model, prompt: Parted, count: int) -> list[int]:
    ids = torch.tensor([prompt.prompt])
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return made[0, len(prompt.prompt) :].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("lap", "turns", "length"), [(31, 2, 0), (5, 1, 0), (1, 1, 0), (20, 2, 500)])
def test_it_goes_on_as_the_ring(folder: Path, dtype: torch.dtype, lap: int, turns: int, length: int) -> None:
    model = load(folder, dtype)
    for prompt in draw_parted(SPEC, np.random.default_rng(lap), lap, turns, length):
        assert len(prompt.prompt) == max(length, shortest_parted(SPEC, lap))
        assert answer(model, prompt, 2 * WINDOW) == prompt.expected(2 * WINDOW)


def test_no_token_of_an_answer_follows_in_the_prompt() -> None:
    """Each is put together: right in the bits of one kind of layer in one place, and in the others' in another."""
    prompt = draw_parted(SPEC, np.random.default_rng(1), 31)[0]
    pairs = set(zip(prompt.prompt, prompt.prompt[1:], strict=False))
    tokens = prompt.ring.tokens
    assert not pairs & set(zip(tokens, (*tokens[1:], tokens[0]), strict=True))
    assert SPEC.mask_of(full=True) ^ SPEC.mask_of(full=False) == SPEC.vocab_size - 1


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(("kinds", "wrong", "says"), [
    ((FULL, FULL, FULL, FULL), {1, 3}, "layers with a window of 64 tokens alone"),
    ((SLIDING, SLIDING, SLIDING, SLIDING), {2}, "layers that see everything alone"),
    ((FULL, SLIDING, FULL, FULL), {3}, "layers with a window of 64 tokens alone"),
])
def test_who_sees_amiss_is_named(folder: Path, kinds: tuple[str, ...], wrong: set[int], says: str) -> None:
    model = load(folder)
    model.config.layer_types[:] = kinds  # by which transformers masks
    prompt = draw_parted(SPEC, np.random.default_rng(2), 31)[0]
    found = diagnose(SPEC, prompt, answer(model, prompt, 10), block_size=16)
    assert found is not None
    assert {layer for layer, _ in found.heads} == wrong
    assert says in found.hint


def test_it_is_read_back_and_says_what_it_cannot_be(folder: Path, tmp_path: Path) -> None:
    assert check_checkpoint(folder) == []
    assert load_spec(folder) == SPEC
    with pytest.raises(UsageError, match="has a sliding window, which llama"):
        build_gguf(SPEC, tmp_path / "probe.gguf")
    with pytest.raises(UsageError, match="serve the preset 'mixed'"):
        longest_parted(PRESETS["window"])
    with pytest.raises(UsageError, match="at most 31 tokens"):
        draw_parted(SPEC, np.random.default_rng(0), 32)
