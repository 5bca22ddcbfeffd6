"""The probe that sees: a picture is, to transformers' LLaVA, exactly the tokens that were drawn in it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

from pabench.errors import UsageError
from pabench.probe import (
    PRESETS,
    Ring,
    build_checkpoint,
    build_gguf,
    check_checkpoint,
    draw_picture,
    draw_two_shapes,
)
from pabench.probe.spec import IMAGE
from pabench.probe.weights import embedding

SPEC = PRESETS["vision"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOKENS = [int(each) for each in np.random.default_rng(3).permutation(np.array(SPEC.ring_ids))[:60]]
SHOWN, OTHERS = TOKENS[:16], TOKENS[16:32]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("probes")

    @lru_cache
    def load(dtype: str) -> tuple[LlavaForConditionalGeneration, AutoImageProcessor]:
        folder: Path = root / dtype
        build_checkpoint(SPEC, folder, dtype)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=DTYPES[dtype])
        return model.eval(), AutoImageProcessor.from_pretrained(folder, backend="pil")

    return load


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_seen_is_what_was_drawn(llava, dtype: str) -> None:
    model, processor = llava(dtype)
    for picture in (draw_picture(SPEC, SHOWN), *draw_two_shapes(SPEC, SHOWN, OTHERS)):
        pixels = processor(Image.fromarray(picture.pixels), return_tensors="pt")["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            (seen,) = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        meant = torch.tensor(embedding(SPEC)[list(picture.tokens)]).to(model.dtype)
        assert torch.equal(seen, meant) if dtype != "float32" else (seen - meant).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_ring_of_which_a_part_is_shown_goes_on(llava, dtype: str) -> None:
    model, processor = llava(dtype)
    ring = Ring(tuple(TOKENS[32:34] + SHOWN + TOKENS[34:40]), 20)
    pixels = processor(Image.fromarray(draw_picture(SPEC, SHOWN).pixels), return_tensors="pt")["pixel_values"]
    start = ring.prompt.index(SHOWN[0])
    prompt = torch.tensor([[*ring.prompt[:start], *[IMAGE] * 16, *ring.prompt[start + 16 :]]])
    with torch.inference_mode():
        answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), pixel_values=pixels.to(model.dtype),
                                max_new_tokens=50, do_sample=False)
    assert answer[0, prompt.shape[1] :].tolist() == ring.expected(50)


@pytest.mark.parametrize("middle", [0.0, 0.5], ids=["at its edge", "at its middle"])
def test_two_shapes_are_the_same_bytes_and_show_two_things(middle: float) -> None:
    """Wherever in a pixel an engine takes its nearest neighbour."""
    wide, tall = draw_two_shapes(SPEC, SHOWN, OTHERS)
    assert wide.pixels.tobytes() == tall.pixels.tobytes()
    assert (wide.pixels.shape, tall.pixels.shape) == ((32, 128, 3), (128, 32, 3))
    read = [2 * row * 64 + 2 * column for row in range(32) for column in range(32) if column % 8 in (2, 3, 6, 7)]
    for picture, tokens in ((wide, SHOWN), (tall, OTHERS)):
        rows, columns = (((np.arange(64) + middle) * size / 64).astype(int) for size in picture.pixels.shape[:2])
        mine = picture.pixels[np.ix_(rows, columns)].reshape(-1, 3)[read]
        assert np.array_equal(mine, draw_picture(SPEC, tokens).pixels.reshape(-1, 3)[read])


@pytest.mark.parametrize(("spec", "tokens", "says"), [
    (PRESETS["tiny"], SHOWN, "sees no pictures: expected preset 'vision'"),
    (SPEC, SHOWN[:15], "shows 16 tokens of a ring: got 15"),
    (SPEC, [*SHOWN[:15], 5], "got 16, from 5 to"),
])
def test_what_cannot_be_drawn(spec, tokens, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        draw_picture(spec, tokens)


def test_it_is_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has eyes, which llama"):
        build_gguf(SPEC, tmp_path / "probe.gguf")


def test_a_changed_template_is_found(tmp_path: Path) -> None:
    build_checkpoint(SPEC, tmp_path)
    assert check_checkpoint(tmp_path) == []
    (tmp_path / "chat_template.jinja").write_text("Hello.")
    assert check_checkpoint(tmp_path) == ["chat_template.jinja differs from what this version builds"]
