"""Text that an engine supplied, made safe for a terminal and for one line of a message."""

from __future__ import annotations

import unicodedata

# Control, format (bidirectional overrides, zero width), surrogate, private use, line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def clean(text: str, max_chars: int = 300) -> str:
    """`text` on one line, without characters that steer a terminal, cut to `max_chars`."""
    safe = "".join(" " if unicodedata.category(char) in _UNSAFE else char for char in text[: 4 * max_chars])
    line = " ".join(safe.split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"
