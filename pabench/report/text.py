"""Numbers and foreign text as the report shows them. Knows nothing about runs.

Text that an engine supplied is hostile. In HTML jinja2 escapes it; `label` makes it safe for plotly, which reads a
part of HTML in its labels; both first go through `visible`, so that no control or direction character acts.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from pabench.telemetry.vocabulary import UNKNOWN

DOUBTED = "not a valid, complete run"  # what a number is marked with that may not be believed
THIN_SPACE = "\u202f"  # narrow, does not break a line

# C0 (but tab and newline), DEL and C1, line and paragraph separators, and the characters that turn text around.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """`text` with every control and direction character replaced by U+FFFD; tab and newline stay."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").encode("utf-8", "replace").decode())


def shortened(text: str, length: int) -> str:
    """One line of at most `length` characters, with an ellipsis where something was cut."""
    line = " ".join(visible(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def fingerprint(text: str, length: int = 12) -> str:
    """As much of a digest or a commit as tells it from others, and whether the checkout was changed."""
    bare = text.removesuffix("-dirty")
    return bare[:length] + ("…" if len(bare) > length else "") + text[len(bare):]


def label(text: str, length: int = 48) -> str:
    """`text` for a place where plotly reads HTML: one line, cut, `<`, `>` and `&` escaped.

    Quotes are not: plotly knows no entity for them, and no label stands in an attribute. Braces are: plotly fills
    `%{…}` in hover texts before it reads entities.
    """
    return html.escape(shortened(text, length), quote=False).replace("{", "&#123;").replace("}", "&#125;")


def number(value: float | None, digits: int = 3) -> str:
    """At least `digits` significant digits, thin spaces between thousands: 0.0123, 1.20, 12 345."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace(",", THIN_SPACE)


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands; a fractional one (a mean) as `number`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{int(value):,}".replace(",", THIN_SPACE) if float(value).is_integer() else number(value)


def percent(value: float | None) -> str:
    """A share 0..1 as per cent, never rounded up to 100 nor down to 0: a whole is shown only where it is one."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    shown = round(100 * value, 1)
    if shown >= 100 > 100 * value:
        return f"> 99.9{THIN_SPACE}%"
    if shown <= 0 < value:
        return f"< 0.1{THIN_SPACE}%"
    return f"{shown:.1f}{THIN_SPACE}%" if 0 < shown < 100 else f"{shown:g}{THIN_SPACE}%"


def ratio(value: float) -> str:
    """A factor: 1.04×, 4.2×, 12×."""
    return f"{value:.2f}×" if value < 1.995 else f"{value:.1f}×" if value < 10 else f"{number(value, 2)}×"


def listed(texts: Sequence[str]) -> str:
    """As a sentence has them: a, b and c."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))
