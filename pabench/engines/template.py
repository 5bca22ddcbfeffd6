"""Events of one stream differ in their text and token ids alone, most of them: those are read by their bytes.

What is read so is what parsing would read: an event becomes a template only if it proves, parsed again with another
text and another id in its gaps, to say nothing but these two, and only what is plain in JSON fills a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pabench.engines.answer_fields import MAX_INT, ids_of, text_of
from pabench.engines.answer_json import error_text, load_json
from pabench.engines.sse import DATA, END, Event
from pabench.errors import EngineProtocol

_MARK = "another text"
_DIGITS = b"0123456789"
_ID_BYTES = _DIGITS + b", "
_ID_DIGITS = 9  # of an id that is below MAX_INT for sure
Said = tuple[str, list[int] | None]  # what an event adds to its choice: text and token ids


@dataclass(frozen=True, slots=True)
class Template:
    """A read that is one event: `before`, a text, `after`; or, with token ids, `before`, text, `between`, ids, `after`.

    `before` ends with the quote that opens the text.
    """

    before: bytes
    between: bytes | None
    after: bytes

    def read(self, piece: bytes) -> Said | None:
        """What `piece` says; None where that takes a parser: it is spelt otherwise, or its text is empty or not plain.
        """
        if not piece.startswith(self.before):
            return None
        begin = len(self.before)
        end = piece.find(b'"', begin)
        raw = piece[begin:end]
        ids: list[int] | None = None
        if self.between is None:
            if piece[end:] != self.after:
                return None
        else:
            ids_at, ids_end = end + len(self.between), len(piece) - len(self.after)
            if not (piece.startswith(self.between, end) and ids_at < ids_end and piece.endswith(self.after)):
                return None
            ids = _plain_ids(piece[ids_at:ids_end])
            if ids is None:
                return None
        text = _plain_text(raw)
        return None if text is None else (text, ids)

    def read_all(self, pieces: Sequence[bytes]) -> tuple[list[str], list[int] | None] | None:
        """Texts and ids of `pieces`, each of them an event with one id where the template has ids: what `read` says of
        each, at a fraction of the cost. None where that takes `read`: one is spelt otherwise, or beyond ASCII.
        """
        whole, edges = b"".join(pieces), len(self.before) + len(self.after)
        if not (whole.startswith(self.before) and whole.endswith(self.after)):
            return None
        said = whole[len(self.before):len(whole) - len(self.after)].split(self.after + self.before)
        if [len(one) + edges for one in said] != list(map(len, pieces)):
            return None
        ids: list[int] | None = None
        if self.between is not None:
            split = [one.partition(self.between) for one in said]
            said = [text for text, _, _ in split]
            ids = _one_id_each([spelt for _, _, spelt in split])
            if ids is None:
                return None
        raw = b"".join(said)
        plain = all(said) and raw.isascii() and b'"' not in raw and _plain_text(raw) is not None
        return ([one.decode() for one in said], ids) if plain else None


def _plain_text(raw: bytes) -> str | None:
    """The text between quotes where JSON needs no escape for it and has none; None where it is empty."""
    if not raw or b"\\" in raw:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _plain_ids(raw: bytes) -> list[int] | None:
    if raw.isdigit() and len(raw) <= _ID_DIGITS and (raw[0] != 48 or len(raw) == 1):  # one, as nearly always
        return [int(raw)]
    if raw.translate(None, _ID_BYTES):
        return None
    try:
        ids: list[int] = orjson.loads(b"[%b]" % raw)
    except orjson.JSONDecodeError:
        return None
    return ids if all(type(value) is int and value < MAX_INT for value in ids) else None


def _one_id_each(spelt: Sequence[bytes]) -> list[int] | None:
    if max(map(len, spelt)) > _ID_DIGITS or b"".join(spelt).translate(None, _DIGITS):
        return None
    try:
        ids: list[int] = orjson.loads(b"[%b]" % b",".join(spelt))
    except orjson.JSONDecodeError:
        return None  # one is empty, or begins with a 0
    return ids


def template_of(event: Event, answer: Mapping[str, Any]) -> Template | None:
    """From an event and what it says; None where it says nothing, or more than a text and token ids of one choice.

    It is parsed once more, with another text and another id in the gaps: only if it says these then, and nothing else,
    are they the places of text and ids, whatever else in the event is spelt alike.
    """
    entry = _sole_entry(answer)
    if entry is None or b"\n" in event.data:
        return None
    text, ids = text_of(entry), ids_of(entry.get("token_ids"))
    if ids == [] or text == _MARK or _plain_text(text.encode()) is None:
        return None
    template = _with_gaps(DATA + event.data + END, text, ids)
    if template is None:
        return None
    others = None if ids is None else [ids[0] ^ 1]
    gap = b"" if template.between is None or others is None else b"%b%d" % (template.between, others[0])
    marked = template.before + _MARK.encode() + gap + template.after
    try:
        entry = _sole_entry(load_json(marked[len(DATA):-len(END)]))
        says = entry is not None and (text_of(entry), ids_of(entry.get("token_ids")))
    except (EngineProtocol, ValueError):
        return None
    return template if says == (_MARK, others) else None


def _with_gaps(piece: bytes, text: str, ids: list[int] | None) -> Template | None:
    """`piece` around the last place where `text` is spelt, and the last one behind it where `ids` are."""
    before, quoted, after = piece.rpartition(b'"%b"' % text.encode())
    if not quoted:
        return None
    before, after = before + b'"', b'"' + after
    if ids is None:
        return Template(before, None, after)
    for separator in (", ", ","):
        between, spelt, rest = after.rpartition(b"[%b]" % separator.join(map(str, ids)).encode())
        if spelt:
            return Template(before, between + b"[", b"]" + rest)
    return None


def _sole_entry(answer: Any) -> Mapping[str, Any] | None:
    """The one choice of an event that says nothing but its text and token ids; None of any other event."""
    if not isinstance(answer, dict) or error_text(answer) is not None or answer.get("usage") is not None:
        return None
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    entry: dict[str, Any] = choices[0]
    says_more = entry.get("finish_reason") not in (None, "") or any(
        entry.get(name) is not None for name in ("logprobs", "prompt_logprobs"))
    return None if says_more else entry
