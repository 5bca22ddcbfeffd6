"""Output whose reader may go away, as behind `| head`: what is left to say is dropped, the command goes on.

Its exit code is a verdict, so it is neither rich's for a broken pipe (1, which would be a regression) nor Python's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


class Steadfast:
    """A text stream like `stream`, which writes nowhere once nobody reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See TextIOBase."""
        self._while_read(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """See TextIOBase."""
        self.write("".join(lines))

    def flush(self) -> None:
        """See TextIOBase."""
        self._while_read(self._stream.flush)

    def _while_read(self, do: Callable[[], object]) -> None:
        try:
            do()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is in its buffer too, when Python ends
            os.close(nowhere)


def make_output_steadfast() -> None:
    """Standard output and error of this process."""
    sys.stdout, sys.stderr = Steadfast(sys.stdout), Steadfast(sys.stderr)
