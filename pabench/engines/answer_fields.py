"""Fields of OpenAI-style answers, checked: what has the wrong type raises EngineProtocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.errors import EngineProtocol

MAX_INT = 2**31  # of ids, indexes and counts: what the records hold
MAX_REASON_CHARS = 100  # of a finish reason: no engine's own is half as long, and records hold one a sample


def fault_text(fault: Exception) -> str:
    """What an error record says of a part of an answer that could not be read."""
    return str(fault) if isinstance(fault, EngineProtocol) else f"{type(fault).__name__}: {fault}"


def count(value: Any, name: str) -> int | None:
    """A count of `usage`, or None where there is none."""
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < MAX_INT:
        raise EngineProtocol(f"expected a count as usage.{name}, got {value!r:.80}")
    return value


def text_of(entry: Mapping[str, Any]) -> str:
    """Text of a completion, of a chat message or of its delta; reasoning and tool calls are text as well."""
    text = entry.get("text")
    if type(text) is str and "delta" not in entry and "message" not in entry:
        return text
    parts: list[Any] = [text]
    for name in ("delta", "message"):
        message = entry.get(name)
        if isinstance(message, dict):
            parts += [message.get("reasoning_content") or message.get("reasoning"), message.get("content")]
            parts += _tool_texts(message.get("tool_calls"))
    given = [part for part in parts if part is not None]
    if not all(isinstance(part, str) for part in given):
        raise EngineProtocol(f"expected text in a choice, got {given!r:.80}")
    return "".join(given)


def _tool_texts(calls: Any) -> list[Any]:
    """Names and arguments of tool calls, each a piece of what was generated."""
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    given = [function for function in functions if isinstance(function, dict)]
    return [function.get(name) for function in given for name in ("name", "arguments")]


def ids_of(values: Any) -> list[int] | None:
    """Token ids of a choice."""
    if values is None:
        return None
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < MAX_INT for value in values):
        raise EngineProtocol(f"expected a list of token ids as token_ids, got {values!r:.80}")
    return values


def logprobs_of(logprobs: Any) -> list[float] | None:
    """Log-probability of each token of a choice, in the completions or the chat shape."""
    if not isinstance(logprobs, dict):
        return None
    values = logprobs.get("token_logprobs")
    if values is None and isinstance(logprobs.get("content"), list):
        values = [item.get("logprob") if isinstance(item, dict) else None for item in logprobs["content"]]
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise EngineProtocol(f"expected a list of numbers as logprobs, got {values!r:.80}")
    return [float(value) for value in values]


def runner_ups_of(logprobs: Mapping[str, Any], count: int) -> list[float | None]:
    """Log-probability of the best token but the chosen one, of each of `count` tokens; None where it is not told."""
    content = logprobs.get("content")
    if isinstance(content, list):
        named = [(item.get("token"), item.get("top_logprobs")) if isinstance(item, dict) else (None, None)
                 for item in content]
        tops = [(name, {each.get("token"): each.get("logprob") for each in top if isinstance(each, dict)}
                 if isinstance(top, list) else None) for name, top in named]
    else:
        names, dicts = logprobs.get("tokens"), logprobs.get("top_logprobs")
        if not isinstance(names, list) or not isinstance(dicts, list):
            return [None] * count
        tops = list(zip(names, dicts, strict=False))
    found: list[float | None] = []
    for name, top in tops[:count]:
        others = [float(value) for other, value in top.items() if other != name and isinstance(value, int | float)] \
            if isinstance(top, dict) else []
        found.append(max(others, default=None))
    return found + [None] * (count - len(found))


def prompt_logprobs_of(entries: Any) -> list[float | None] | None:
    """Log-probability of each token of the prompt, in vLLM's shape: the token itself comes first in its entry."""
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise EngineProtocol(f"expected a list as prompt_logprobs, got {entries!r:.80}")
    values: list[float | None] = []
    for entry in entries:
        told = next(iter(entry.values()), None) if isinstance(entry, dict) else None
        value = told.get("logprob") if isinstance(told, dict) else None
        values.append(float(value) if isinstance(value, int | float) else None)
    return values
