"""JSON as engines write it, and what their errors say."""

from __future__ import annotations

import json
import reprlib
from typing import Any

import orjson

MAX_ERROR_CHARS = 2000
_MAX_DEPTH = 100   # of an answer; deeper, Python's own recursion could end while it is read


def load_json(data: bytes) -> Any:
    """JSON, fast; also with the NaN and Infinity that Python servers write. Raises ValueError."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = encodable(json.loads(data.decode("utf-8", "replace")))
        except RecursionError as error:
            raise ValueError("JSON nested too deeply") from error
    # Each level takes two bytes at least, and most events are short: those are not even counted.
    may_be = len(data) > 2 * _MAX_DEPTH and data.count(b"[") + data.count(b"{") > _MAX_DEPTH
    if may_be and _is_deeper(value, _MAX_DEPTH):
        raise ValueError("JSON nested too deeply")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie more than `levels` deep in `value`."""
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def encodable(value: Any) -> Any:
    """`value` without halves of surrogate pairs, which JSON can spell and no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list | tuple):
        return [encodable(item) for item in value]
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    return value


def error_text(answer: Any) -> str | None:
    """What an error answer says, in any engine's spelling; None where it is no error."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if error is None and answer.get("object") == "error":
        error = answer
    if error is None:
        error = answer.get("detail")
    if isinstance(error, dict):
        error = error.get("message") or reprlib.repr(error)
    if error is None or error is False:
        return None
    return (error if isinstance(error, str) else repr(error))[:MAX_ERROR_CHARS]
