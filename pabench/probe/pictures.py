"""Pictures of tokens: what the `vision` probe sees in one is exactly the tokens that were drawn, a token a patch.

A patch of 16 x 16 pixels is a grid of 8 x 8 cells, and each of its lanes is one channel of one cell, black or white. A
lane is a coordinate of the token's embedding that has two values: its code and the bits of its id.

Of the grid's columns every other pair stays unread. That makes room for two pictures in the same bytes: wide, they show
one thing, and tall another, once an engine has brought both to its own size.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pabench.errors import UsageError
from pabench.probe.spec import ProbeSpec
from pabench.probe.weights import embedding, two_valued

PATCH = 16            # pixels a side
LANES = 64            # of a patch; a token's coordinates, and the first of them again
_CELL = 2             # pixels a side: so a picture of half the height or half the width loses nothing
_CELLS = PATCH // _CELL
_STRETCH = 2          # a wide picture is so many times as wide as the engine's, and a part of its height
_READ = (2, 3, 6, 7)  # columns of cells
# Channel, row and column of cells of each lane.
PLACES = tuple(product(range(3), range(_CELLS), _READ))[:LANES]

Pixels = NDArray[np.uint8]  # [height, width, 3]


@dataclass(frozen=True, slots=True)
class Picture:
    """Tokens to be shown, and the pixels that show them."""

    tokens: tuple[int, ...]
    pixels: Pixels

    @property
    def uri(self) -> str:
        """The picture itself, as a PNG in an address."""
        from PIL import Image  # here: for pictures alone

        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        return "data:image/png;base64," + b64encode(file.getvalue()).decode()


def draw_picture(spec: ProbeSpec, tokens: Sequence[int]) -> Picture:
    """A picture of so many tokens as the probe sees in one, in the size that it takes.

    Raises UsageError for another number of tokens, and where the probe sees no pictures.
    """
    cells = _cells(spec, tokens)
    return Picture(tuple(tokens), np.repeat(np.repeat(cells, _CELL, axis=0), _CELL, axis=1))


def draw_two_shapes(spec: ProbeSpec, wide: Sequence[int], tall: Sequence[int]) -> tuple[Picture, Picture]:
    """A wide picture of some tokens and a tall one of others, whose pixels are the same bytes in the same order.

    Nearest neighbours, taken at the middle of a pixel or at its edge, bring both to the engine's size.
    """
    side = _side(spec)
    low = side // _STRETCH
    pixels = np.zeros((low, _STRETCH * side, 3), np.uint8)
    # Each cell in the columns that it is read at: at the edge the first of four, at the middle the second.
    pixels.reshape(low, low, 2 * _STRETCH, 3)[:, :, : _STRETCH] = _cells(spec, wide)[:, :, None]
    lying = np.zeros((_STRETCH * side, low, 3), bool)
    lying.reshape(low, 2 * _STRETCH, low, 3)[:, : _STRETCH] = np.isin(np.arange(low) % _CELLS, _READ)[:, None]
    turned = pixels.reshape(lying.shape)  # the same bytes
    tall_cells = np.broadcast_to(_cells(spec, tall)[:, None], (low, 2 * _STRETCH, low, 3)).reshape(lying.shape)
    turned[lying] = tall_cells[lying]
    return Picture(tuple(wide), pixels), Picture(tuple(tall), turned)


def _side(spec: ProbeSpec) -> int:
    """Pixels of the size that the probe takes."""
    if not spec.picture_side:
        raise UsageError(f"probe {spec.preset!r} sees no pictures: expected preset 'vision'")
    return PATCH * spec.picture_side


def _cells(spec: ProbeSpec, tokens: Sequence[int]) -> Pixels:
    """One pixel a cell: [cells, cells, 3]."""
    side = _side(spec)
    if len(tokens) != spec.picture_tokens or min(tokens) not in spec.ring_ids or max(tokens) not in spec.ring_ids:
        raise UsageError(f"a picture of probe {spec.preset!r} shows {spec.picture_tokens} tokens of a ring: got "
                         f"{len(tokens)}, from {min(tokens, default=None)} to {max(tokens, default=None)}")
    dims = two_valued(spec)
    lanes = embedding(spec)[np.ix_(tokens, [dims[i % len(dims)] for i in range(LANES)])] > 0  # [tokens, lanes]
    cells = np.zeros((side // _CELL, side // _CELL, 3), np.uint8)
    patches = cells.reshape(spec.picture_side, _CELLS, spec.picture_side, _CELLS, 3).swapaxes(1, 2)
    channel, row, column = np.array(PLACES).T
    patches[:, :, row, column, channel] = 255 * lanes.reshape(spec.picture_side, spec.picture_side, LANES)
    return cells
