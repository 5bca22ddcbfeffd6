"""How many words a stream has brought, where an engine says its tokens as text alone."""

from __future__ import annotations

from collections.abc import Sequence

from pabench.engines.base import TextReader


class WordCount:
    """How many new words each piece of text brings. A word cut by a chunk's edge counts when its first part comes."""

    def __init__(self, read_text: TextReader) -> None:
        self._read_text = read_text
        self._tail = ""       # from the last word on: it may still grow
        self._in_tail = 0
        self._passed: list[str] = []

    def pass_over(self, text: str) -> None:
        """Take a piece of which nobody asks how many words it brings: not yet read, most never are."""
        self._passed.append(text)

    def add_one_each(self, texts: Sequence[str]) -> bool:
        """Take printable pieces of which each brings a word. False, and none is taken, where they may bring others."""
        self._catch_up()
        whole = "".join(texts)
        before, behind = (all(text[at] == " " for text in texts) for at in (0, -1))
        apart = before or (behind and not self._tail)
        if not (apart and not any(map(str.isspace, texts)) and len(whole.split()) == len(texts)
                and len(self._read_text(whole)) == len(texts)):
            return False
        self._tail, self._in_tail = ("", 0) if behind else (texts[-1], 1)
        return True

    def _catch_up(self) -> None:
        passed, self._passed = "".join(self._passed), []
        if passed:
            self.add(passed)

    def add(self, text: str) -> int:
        """Take a piece; how many words it brings."""
        self._catch_up()
        self._tail += text
        in_tail = len(self._read_text(self._tail))
        new = max(0, in_tail - self._in_tail)
        # All but the last word is settled: drop it, so that the work stays linear in the text.
        words = self._tail.rsplit(None, 1)
        if len(words) == 2 and not self._tail[-1].isspace():
            self._tail = words[1]
            in_tail = len(self._read_text(self._tail))
        elif self._tail and self._tail[-1].isspace():
            self._tail, in_tail = "", 0
        self._in_tail = in_tail
        return new
