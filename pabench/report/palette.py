"""One colour, dash and marker an engine, the same in every figure and both themes.

Colours are those of Okabe and Ito (2008), "Color Universal Design", told apart with any common colour vision; black,
which a dark page would swallow, is grey here. Dash and marker say the same again without colour.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """How one engine is drawn. `dash` and `marker` are plotly's names; `svg_dash` and `svg_marker` say the same in
    SVG: a stroke-dasharray, and a path around the origin that fits into 10 by 10.
    """

    colour: str
    dash: str
    svg_dash: str
    marker: str
    svg_marker: str


LOOKS = (
    Look("#0072B2", "solid", "none", "circle",
         "M-4.2 0A4.2 4.2 0 1 0 4.2 0A4.2 4.2 0 1 0 -4.2 0Z"),
    Look("#D55E00", "dash", "5 3", "square",
         "M-4 -4H4V4H-4Z"),
    Look("#009E73", "dashdot", "6 2 1.5 2", "diamond",
         "M0 -5L5 0L0 5L-5 0Z"),
    Look("#CC79A7", "dot", "1.5 2.5", "triangle-up",
         "M0 -4.6L4.8 4H-4.8Z"),
    Look("#E69F00", "longdash", "8 3", "cross",
         "M-1.7 -5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z"),
    Look("#56B4E9", "longdashdot", "8 2 2 2", "x",
         "M-4.7 -2.4L-2.4 -4.7L0 -2.3L2.4 -4.7L4.7 -2.4L2.3 0L4.7 2.4L2.4 4.7L0 2.3L-2.4 4.7L-4.7 2.4L-2.3 0Z"),
    Look("#8A8A8A", "solid", "none", "triangle-down",
         "M0 4.6L4.8 -4H-4.8Z"),
    Look("#B8A800", "dash", "5 3", "star",
         "M0.0 -5.0L1.2 -1.7L4.8 -1.5L2.0 0.6L2.9 4.0L0.0 2.1L-2.9 4.0L-2.0 0.6L-4.8 -1.5L-1.2 -1.7Z"),
)

_DASHES = 6  # different ones, which the first looks have

# The states of a slot (the vLLM paper's Fig. 2), with a pattern each. None of them is an engine's colour.
WASTE = (
    ("token_states", "token states", "#2F6F62", ""),
    ("reserved", "reserved", "#DDCC77", "/"),
    ("internal", "internal waste", "#CC6677", "\\"),
    ("external", "external waste", "#882255", "x"),
    ("free", "free", "#B9BEC6", ""),
)


# Owners of blocks, in turn: Paul Tol's "bright" scheme, told apart with any common colour vision. None is an engine's.
OWNERS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")


def look(index: int) -> Look:
    """The look of engine `index`. Past the last colour they come round again, each with another marker and dash: any
    two of the three tell apart engines 0 to 23.
    """
    lap, place = divmod(index, len(LOOKS))
    mark = LOOKS[(place + lap) % len(LOOKS)]
    dash = LOOKS[(place + 2 * lap) % _DASHES]
    return Look(LOOKS[place].colour, dash.dash, dash.svg_dash, mark.marker, mark.svg_marker)
