"""Images in chats: a cached prefix is found by the image that stands in it, and by nothing that only looks like it.

The probe sees a picture as the tokens that were drawn, so a ring of which a part is shown goes on as any other, and
what is read behind another picture is named, with its owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from pabench.conformance.engine import EngineUnderTest, refused
from pabench.conformance.failure import fail
from pabench.conformance.prompts import HEADER_TOKENS, RING_OVERHEAD
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask
from pabench.engines.cleaning import clean
from pabench.engines.wording import image_part
from pabench.probe import Picture, Ring, draw_picture, draw_two_shapes

_MOST = 6  # images in a prompt


@dataclass(frozen=True)
class _Words:
    """Two rings in the same words, which differ in what a picture among them shows: `one` or `other`."""

    one: Ring
    other: Ring
    start: int  # of the picture, in the prompt

    def shown(self, ring: Ring, count: int) -> tuple[int, ...]:
        """The tokens of `ring` that the picture shows."""
        at = self.start - HEADER_TOKENS
        return ring.tokens[at : at + count]


def _length(engine: EngineUnderTest, start: int) -> int:
    """Prompt tokens: the picture from `start` on, to the end of its block and a block more."""
    block = engine.edge
    length = ((start + engine.spec.picture_tokens) // block + 2) * block + 1
    if 2 * length > engine.longest:
        unsupported(f"{engine.block_text}: a prompt of {length} tokens, with a picture from {start} on and a block "
                    f"behind it, does not fit into {engine.longest} tokens twice")
    return length


def _words(engine: EngineUnderTest, start: int) -> list[_Words]:
    """The words around a picture that begins at position `start`; the second of them are complements."""
    length, count = _length(engine, start), engine.spec.picture_tokens
    at = start - HEADER_TOKENS
    return [
        _Words(ring, Ring(ring.tokens[:at] + other.tokens + ring.tokens[at + count :], ring.salt), start)
        for ring, other in engine.rings([length, count + RING_OVERHEAD])
    ]


def _alike(engine: EngineUnderTest, words: _Words) -> str:
    """What A and B are, for the line that says what a case sends."""
    return (f"{engine.block_text}; A and B of {len(words.one.prompt)} prompt tokens, alike but for a picture from "
            f"token {words.start} on")


def _ask(ring: Ring, pictures: Sequence[Picture], name: str, claimed: str | None = None) -> Ask:
    """A lap of `ring`, of which `pictures` show a part each; `claimed`: what the client calls them."""
    images = tuple(image_part(ring, picture, claimed) for picture in pictures)
    return Ask(ring, len(ring.tokens), name, chat=True, images=images)


def _both(engine: EngineUnderTest, words: _Words, claimed: str | None = None) -> tuple[Ask, Ask]:
    count = engine.spec.picture_tokens
    one, other = (_ask(ring, [draw_picture(engine.spec, words.shown(ring, count))], name, claimed)
                  for ring, name in ((words.one, "A"), (words.other, "B")))
    return one, other


def _in_turn(engine: EngineUnderTest, asks: Sequence[Ask]) -> None:
    """One after another; verified together, so that what one reads of another's is named."""
    engine.verify(asks, [engine.generate([ask.request])[0] for ask in asks])


@pytest.mark.requirement("http/image-identity")
@pytest.mark.parametrize("offset", [-1, 0, 1], ids=["kB-1", "kB", "kB+1"])
def test_image_at_a_block_edge(engine: EngineUnderTest, offset: int) -> None:
    """A picture that begins one before, at and one behind a block edge; then again, when its blocks are cached."""
    start = max(engine.edge, HEADER_TOKENS + 2) + offset
    for words in _words(engine, start):
        ask, _ = _both(engine, words)
        for how in ("new", "sent before"):
            engine.case = (f"{engine.block_text}; {len(words.one.prompt)} prompt tokens, those from {start} on as a "
                           f"picture of {engine.spec.picture_tokens}, {how}; greedy {ask.tokens} tokens")
            engine.ask([ask])


@pytest.mark.requirement("http/image-identity", case="same-words")
def test_other_image_in_the_same_words(engine: EngineUnderTest) -> None:
    """A and B differ in nothing but what their picture shows: one after the other, then again, then at once."""
    for words in _words(engine, HEADER_TOKENS + 1):
        a, b = _both(engine, words)
        engine.case = f"{_alike(engine, words)}; A, B, A, B, then both at once; greedy {a.tokens} tokens"
        _in_turn(engine, [a, b, a, b])
        engine.ask([a, b])


@pytest.mark.requirement("http/image-identity", case="behind-own-block")
def test_image_behind_own_block(engine: EngineUnderTest) -> None:
    """B sends its picture and a block's words, then all: behind what it sent, A's blocks are none of its own.

    Whoever keeps images out of a key's chain finds the blocks behind one under any other.
    """
    engine.need("cached_tokens", "what the probe reads in those blocks is the same for A and B: only the count tells")
    (words, _) = _words(engine, HEADER_TOKENS + 1)
    a, b = _both(engine, words)
    block = engine.edge
    sent = -(-(words.start + engine.spec.picture_tokens) // block) * block + 1
    engine.case = f"{_alike(engine, words)}; A, then the first {sent} tokens of B, then B"
    engine.ask([a])
    first = Ask(Ring(words.other.tokens[: sent - RING_OVERHEAD], words.other.salt), 1, "B's beginning", chat=True,
                images=b.images)
    engine.ask([first])
    (answer,) = engine.ask([b])
    cached = answer.usage.cached_tokens if answer.usage is not None else None
    if (cached or 0) > sent:
        fail(f"at most {sent} cached tokens: so many were sent behind B's picture",
             f"{cached}: blocks behind them were found, which were computed behind A's",
             hint="the image is in the key of its own blocks, and not in what the next block's key builds on")


@pytest.mark.requirement("http/image-identity", case="two-shapes")
def test_same_bytes_in_another_shape(engine: EngineUnderTest) -> None:
    """A wide picture and a tall one of the same bytes show different tokens."""
    for words in _words(engine, HEADER_TOKENS + 1):
        count = engine.spec.picture_tokens
        wide, tall = draw_two_shapes(engine.spec, words.shown(words.one, count), words.shown(words.other, count))
        shapes = " and ".join(f"{each.pixels.shape[1]} x {each.pixels.shape[0]}" for each in (wide, tall))
        engine.case = f"{_alike(engine, words)}, {shapes} pixels of the same bytes; A, B, A"
        a, b = _ask(words.one, [wide], "A"), _ask(words.other, [tall], "B")
        _in_turn(engine, [a, b, a])


@pytest.mark.requirement("http/image-identity", case="many")
def test_many_images(engine: EngineUnderTest) -> None:
    """Several pictures in one prompt, then the same ones in another order, while another prompt is answered."""
    count = engine.spec.picture_tokens
    number = min(_MOST, (engine.longest // 2 - RING_OVERHEAD) // count)
    if number < 2:
        unsupported(f"{engine.block_text}: no two pictures of {count} tokens fit into {engine.longest} tokens twice")
    ring, beside = engine.rings([number * count + RING_OVERHEAD, engine.edge + RING_OVERHEAD])[0]
    pictures = [draw_picture(engine.spec, ring.tokens[i * count : (i + 1) * count]) for i in range(number)]
    turned = Ring(sum((picture.tokens for picture in pictures[::-1]), ()), ring.salt)
    engine.case = (f"{engine.block_text}; A of {number} pictures of {count} tokens, B of the same ones the other way "
                   "round, while C is answered; greedy, a lap each")
    for ask in (_ask(ring, pictures, "A"), _ask(turned, pictures[::-1], "B"), _ask(ring, pictures, "A")):
        reader = engine.start([Ask(beside, 2 * len(beside.tokens), "C")])
        (answer,) = engine.generate([ask.request])
        if refused(answer):
            unsupported(f"the engine refuses {number} images in a prompt: {clean(answer.error or '')}")
        engine.verify([ask], [answer])
        reader.verify()


@pytest.mark.requirement("http/image-name-is-no-key")
def test_image_under_anothers_name(engine: EngineUnderTest) -> None:
    """A's picture under a name, then B's under the same one; in the same words, then in others."""
    for words in _words(engine, HEADER_TOKENS + 1):
        name = f"{int(engine.rng.integers(2**62)):x}"
        a, b = _both(engine, words, name)
        engine.case = f"{_alike(engine, words)}, which both call {name}; A, then B; greedy {a.tokens} tokens"
        _in_turn(engine, [a, b])
