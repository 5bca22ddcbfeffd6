"""The engine that sees: images in chunks, behind cached blocks, through preemption; and what it takes over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from base64 import b64encode
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import extended_body
from pabench.engines.wording import image_part, worded
from pabench.errors import UsageError
from pabench.probe import PRESETS, Ring, build_checkpoint, draw_picture, draw_two_shapes
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.loader import load_model
from reference_engine.model.vision import read_vision
from reference_engine.serving.images import image_key
from reference_engine.serving.tokenizer import Tokenizer
from tests.reference_engine.helpers import drain, greedy, ids
from tests.reference_engine.http import serve

SPEC = PRESETS["vision"]
CHATS = "/v1/chat/completions"
TOKENS = [int(each) for each in np.random.default_rng(7).permutation(np.array(SPEC.paired_ids))]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("vision")
    build_checkpoint(SPEC, folder)
    cpu = torch.device("cpu")
    return (load_model(folder, torch.float32, cpu, 512), Tokenizer(folder), read_vision(folder, torch.float32, cpu))


@pytest.fixture
def make(seeing):
    def build(**config):
        model, tokenizer, vision = seeing
        defaults = {"block_size": 16, "num_blocks": 64, "max_model_len": 512, "check_integrity": True}
        return Engine(model, tokenizer, EngineConfig(**defaults | config), vision)

    return build


def ring_of(length: int, at: int = 0) -> Ring:
    """A ring of so many tokens; `at`: which."""
    return Ring(tuple(TOKENS[at : at + length]), 20)


def chat(ring: Ring, *starts: int, uri: str | None = None, max_tokens: int | None = None, **more):
    """Body of a chat of `ring`, with a picture from each of these positions on."""
    images = tuple(image_part(ring, draw_picture(SPEC, ring.prompt[start : start + 16])) for start in starts)
    if uri is not None:
        images = tuple(replace(image, uri=uri) for image in images)
    request = GenerationRequest(ring.prompt, max_tokens or len(ring.tokens), chat=True, stream=False, images=images)
    return extended_body(worded(request, _Ids), "probe") | {"ignore_eos": True} | more


class _Ids:
    capabilities = frozenset({"token_ids"})


def answered(answer: dict) -> list[int]:
    return answer["choices"][0]["token_ids"]


def cached(answer: dict) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("config", [
    {}, {"max_num_batched_tokens": 64, "max_num_seqs": 4}, {"attention_backend": "torch"}, {"kv": "contiguous"},
    {"enforce_eager": True}, {"prefix_caching": False, "block_size": 5, "num_blocks": 200},
], ids=["default", "small chunks", "torch", "contiguous", "eager", "no cache, blocks of 5"])
@pytest.mark.parametrize("starts", [(2,), (15,), (16,), (17,), (3, 19, 70)])
def test_a_ring_of_which_a_part_is_shown_goes_on(make, config, starts) -> None:
    ring = ring_of(100)

    async def scenario(client):
        for _ in range(2):
            status, answer = await client.post(chat(ring, *starts), CHATS)
            assert (status, answered(answer)) == (200, ring.expected(100))
            assert answer["usage"]["prompt_tokens"] == len(ring.prompt)
            assert answer["prompt_token_ids"].count(4) == 16 * len(starts)

    serve(make(**config), scenario)


def test_a_hit_is_of_the_same_image_and_of_no_other(make) -> None:
    one = ring_of(60)
    other = Ring(one.tokens[:1] + tuple(TOKENS[200:216]) + one.tokens[17:], one.salt)

    async def scenario(client):
        answers = [(await client.post(chat(ring, 3), CHATS))[1] for ring in (one, one, other, other, one)]
        assert [answered(answer) for answer in answers] == [ring.expected(60) for ring in (one, one, other, other, one)]
        assert [cached(answer) for answer in answers] == [0, 48, 0, 48, 48]

    serve(make(), scenario)


def test_images_survive_preemption(make) -> None:
    """Of requests that do not fit together, those that were preempted are computed anew, with their images."""
    engine = make(num_blocks=20)
    rings = [ring_of(60, at=100 * i) for i in range(6)]

    async def scenario(client):
        answers = await asyncio.gather(*(client.post(chat(ring, 3, max_tokens=150), CHATS) for ring in rings))
        assert [answered(answer) for _, answer in answers] == [ring.expected(150) for ring in rings]
        assert engine.scheduler.stats.preemptions > 0

    serve(engine, scenario)


def test_without_its_picture_a_placeholder_is_a_token_as_others(make) -> None:
    """Sent as an id, it is looked up in the embedding: nothing of an image is in it."""
    engine, ring = make(), ring_of(60)
    prompt = (*ring.prompt[:3], *[4] * 16, *ring.prompt[19:])
    request = engine.add(prompt, greedy(8))
    assert ids(drain(engine)[request.id][0])[:1] != ring.expected(1)


def test_the_key_is_of_pixels_and_shape() -> None:
    wide, tall = draw_two_shapes(SPEC, TOKENS[:16], TOKENS[16:32])
    keys = [image_key(Image.fromarray(picture.pixels)) for picture in (wide, tall, wide)]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def uri(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + b64encode(data).decode()


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


def claim(side: int) -> bytes:
    """A PNG of a few bytes whose header says it has side * side pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data)) for kind, data in chunks)


@pytest.mark.parametrize(("sent", "says"), [
    ("http://127.0.0.1:1/a.png", "fetches nothing"),
    ("data:image/png,abc", "expected data:image/png;base64"),
    ("data:image/png;base64,%%%", "cannot be read as PNG"),
    (uri(b"no image"), "cannot be read as PNG"),
    (uri(png(64, 64)[:60]), "cannot be read as PNG"),
    (uri(png(5000, 4000)), "5000 x 4000 pixels, at most 16777216"),
    (uri(claim(10_000)), "10000 x 10000 pixels, at most 16777216"),
    (uri(claim(20_000)), "20000 x 20000 pixels, at most 16777216"),
], ids=["address", "no base64", "bad base64", "no image", "cut off", "too large", "of which Pillow warns", "bomb"])
def test_what_is_no_image_is_refused_and_the_next_is_served(make, sent: str, says: str) -> None:
    ring = ring_of(60)

    async def scenario(client):
        status, answer = await client.post(chat(ring, 3, uri=sent), CHATS)
        assert status == 400
        assert says in answer["error"]["message"]
        status, answer = await client.post(chat(ring, 3), CHATS)
        assert (status, answered(answer)) == (200, ring.expected(60))

    serve(make(), scenario)


def test_grey_images_are_taken(make) -> None:
    async def scenario(client):
        status, _ = await client.post(chat(ring_of(60), 3, uri=uri(png(20, 30, "L")), max_tokens=2), CHATS)
        assert status == 200

    serve(make(), scenario)


def test_a_placeholder_in_the_words_is_refused(make) -> None:
    body = chat(ring_of(60), 3)
    body["messages"][0]["content"][0]["text"] += " <image>"

    async def scenario(client):
        status, answer = await client.post(body, CHATS)
        assert status == 400
        assert "2 times '<image>', for 1 images" in answer["error"]["message"]

    serve(make(), scenario)


LIKE_LLAVAS = """{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] |
selectattr('type', 'equalto', 'image') %}<image> {% endfor %}{% for part in message['content'] |
selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %} {% endfor %}"""


def test_templates_that_know_parts_alone_get_parts(make, tmp_path) -> None:
    """Published LLaVAs have such: given a text, they would write nothing of it."""
    build_checkpoint(SPEC, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(LIKE_LLAVAS)
    engine = make()
    engine.tokenizer = Tokenizer(tmp_path)

    async def scenario(client):
        for content in ("t300 t301", [{"type": "text", "text": "t300 t301"}]):
            _, told = await client.post({"messages": [{"role": "user", "content": content}]}, "/tokenize")
            assert told["tokens"][-2:] == [300, 301]
        _, told = await client.post({"messages": chat(ring_of(60), 3)["messages"]}, "/tokenize")
        assert told["tokens"][1:17] == [4] * 16

    serve(engine, scenario)


def test_images_beyond_the_longest_prompt_are_not_looked_at(make) -> None:
    body = chat(ring_of(60), 3)
    parts = body["messages"][0]["content"]
    body["messages"][0]["content"] = [*parts, *[parts[1]] * 40]

    async def scenario(client):
        status, answer = await client.post(body, CHATS)
        assert status == 400
        assert "images the prompt is of" in answer["error"]["message"]

    serve(make(max_model_len=256), scenario)


def test_tokenize_counts_an_images_tokens(make) -> None:
    body = chat(ring_of(60), 3)

    async def scenario(client):
        status, answer = await client.post({"messages": body["messages"]}, "/tokenize")
        assert (status, answer["count"]) == (200, 63)

    serve(make(), scenario)


def test_a_model_without_eyes_says_so(make_engine) -> None:
    async def scenario(client):
        status, answer = await client.post(chat(ring_of(60), 3), CHATS)
        assert status == 400
        assert answer["error"]["message"] == "message parts other than text are not supported"

    serve(make_engine(), scenario)


def test_a_vision_part_that_cannot_be_loaded_is_told(tmp_path) -> None:
    build_checkpoint(SPEC, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"the vision part of .* cannot be loaded"):
        read_vision(tmp_path, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(("changes", "says"), [
    ({"quantization_config": {"quant_method": "fp8"}}, "is quantised"),
    ({"text_config": None}, "has no text_config"),
    ({"architectures": ["LlamaForCausalLM"]}, "config.json is incomplete"),
])
def test_what_its_config_makes_no_model_of(tmp_path, changes, says) -> None:
    build_checkpoint(SPEC, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UsageError, match=says):
        load_model(tmp_path, torch.float32, torch.device("cpu"), 64)


def test_a_blind_model_has_no_tensors_of_one_that_sees(tmp_path) -> None:
    """It would be another model than its config.json says."""
    build_checkpoint(SPEC, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    blind = config["text_config"] | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(blind))
    with pytest.raises(UsageError, match=r"lacks .* tensors that its config.json asks for"):
        load_model(tmp_path, torch.float32, torch.device("cpu"), 64)
