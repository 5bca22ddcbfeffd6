"""Text made safe to show and to keep: what an engine supplied, and commands that may hold secrets."""

from __future__ import annotations

import html
import re
import shlex
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# Control, format (bidirectional overrides, zero width), surrogate, private use, line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_NO_XML = "\ufffe\uffff"  # a JUnit file that holds one cannot be read
_MARKDOWN = re.compile(r"([\\`*_\[\]|#~!])")
_LINKED = re.compile(r"@|:(?=//)|www(?=\.)|#(?=\d)", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SPLIT = re.compile(r"[;\t\r\n]\"*(?=[=+\-@])")  # where a field may begin, and a formula in it
_SECRET = re.compile(r"(key|token|secret|password)\b|(key|secret|password)s$", re.IGNORECASE)
_ESCAPED = {b"/": b"\\/", b'"': b'\\"', b"\\": b"\\\\"}  # in JSON; some gateways write the first of them
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")  # of which a key is made; not of accents, whose texts are many
_NO_WORD_BYTES = 12  # of a key: so long, it is no word that an answer may hold by chance
WHOLE = 2000  # characters: our own sentence around an engine's last words is not cut


def clean(text: str, max_chars: int = 300) -> str:
    """`text` on one line, without characters that steer a terminal, cut to `max_chars`."""
    safe = "".join(" " if char in _NO_XML or unicodedata.category(char) in _UNSAFE else char
                   for char in text[: 4 * max_chars])
    line = " ".join(safe.split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def without_key(text: str, api_key: str | None) -> str:
    """`text` with the key, which an engine may quote, as `***`; where it was `masked` too, or its end is cut off."""
    if not api_key:
        return text
    text = re.sub(rf"\*{{{max(4, len(api_key))},}}", "***", text.replace(api_key, "***"))
    begin = api_key[:_NO_WORD_BYTES]
    while len(api_key) > _NO_WORD_BYTES and (at := text.find(begin)) >= 0:
        length = next(size for size in range(len(api_key), 0, -1) if text.startswith(api_key[:size], at))
        text = f"{text[:at]}***{text[at + length:]}"
    return text


def masked(body: bytes, status: int | None, api_key: str | None) -> bytes:
    """`body` of an answer, the key in it as so many stars. A short one only where the answer tells of an error, since a
    word of a good one may be like it.
    """
    key = (api_key or "").encode()
    if not key or not (len(key) >= _NO_WORD_BYTES or status != 200 or b"error" in body):
        return body
    body = body.replace(key, b"*" * len(key))
    if _ESCAPED_ASCII.search(body) or any(escaped in body for char, escaped in _ESCAPED.items() if char in key):
        body = _spelt_in_json(key).sub(lambda found: b"*" * len(found[0]), body)
    return body


@lru_cache(maxsize=8)
def _spelt_in_json(key: bytes) -> re.Pattern[bytes]:
    """`key` with any of its characters as JSON may have them too."""
    chars = []
    for char in map(chr, key):
        plain = re.escape(char.encode("latin-1"))
        short = _ESCAPED.get(char.encode("latin-1"))
        escaped = b"" if short is None else b"|" + re.escape(short)
        chars.append(b"(?:%b|\\\\u(?i:%04x)%b)" % (plain, ord(char), escaped))
    return re.compile(b"".join(chars))


def markdown(text: str) -> str:
    """`text` as one line of Markdown that is nothing but text, in a table's cell too: no link, picture, tag or code.

    An address, and a name behind "@", has a zero-width space in it, as `unlinked` has it.
    """
    return unlinked(_MARKDOWN.sub(r"\\\1", html.escape(clean(text, WHOLE), quote=False)))


def unlinked(text: str) -> str:
    """`text` with a zero-width space behind "@", the colon of "://", "www" and the "#" of a number: GitHub makes links
    of what these begin, and writes to whom "@" names.
    """
    return _LINKED.sub("\\g<0>\u200b", text)


def no_formula(text: str) -> str:
    """`text` for a quoted CSV field: what a spreadsheet would run as a formula gets an apostrophe before it (OWASP).

    Also behind a sign where one of another locale splits: a quote does not keep it from that, for what splits at ";"
    alone, as in the German and the French one, takes a quote behind a comma for a letter.
    """
    return _SPLIT.sub(r"\g<0>'", f"'{text}" if text.startswith(_FORMULA) else text)


def without_secrets(command: str) -> str:
    """`command` for a record: what stands between an option whose name ends in key, token, secret or password and the
    next one is left out.

    A word that is a command line itself, as behind `bash -c`, is treated alike. Text that is none, as with a lone quote
    in it, is split at its spaces.
    """
    words = _words(command)
    kept = [without_secrets(word) if any(map(str.isspace, word)) and len(words) > 1 else word for word in words]
    behind = False  # an option that takes a secret, or several
    for at, word in enumerate(words):
        name, equals, _ = word.rpartition("=")
        if word.startswith("-"):
            behind = not equals and _SECRET.search(word) is not None
        if equals and _SECRET.search(name):
            kept[at] = f"{_up_to_secret(name)}=***"
        elif behind and not word.startswith("-"):
            kept[at] = "***"
    return command if kept == words else shlex.join(kept)


def _words(command: str) -> list[str]:
    """A command's, or those of text that is none."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def secrets_in(words: Sequence[str]) -> list[str]:
    """What `without_secrets` leaves out of a command of these words."""
    found = []
    for word, shown in zip(words, shlex.split(without_secrets(shlex.join(words))), strict=True):
        if shown.endswith("***") and shown != word:
            found.append(word[len(shown) - 3:])
        elif shown != word:  # a command line itself
            found += secrets_in(_words(word))
    return found


def _up_to_secret(name: str) -> str:
    """The part before the first "=" behind which a secret stands, of a word that holds more than one."""
    parts = name.split("=")
    return "=".join(parts[: next(i for i, part in enumerate(parts) if _SECRET.search(part)) + 1])
