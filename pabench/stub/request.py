"""Requests to the stub, checked, and how it continues a prompt."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pabench.probe import FIRST_RING, FIRST_SALT, SEP, UNK, Codec


class Refused(Exception):
    """A request that is answered with an HTTP error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class StubRequest:
    """A generation request, checked. `arrival_s` is on the monotonic clock."""

    prompt: tuple[int, ...]
    max_tokens: int
    n: int
    temperature: float
    stream: bool
    include_usage: bool
    return_ids: bool
    logprobs: bool
    chat: bool
    seed: int | None
    arrival_s: float


def read_request(body: Any, chat: bool, arrival_s: float, max_model_len: int) -> StubRequest:
    """The request in a JSON body. Raises Refused with 400 and what was expected."""
    if not isinstance(body, dict):
        raise Refused(400, f"expected a JSON object, got {type(body).__name__}")
    prompt = _chat_ids(body) if chat else _prompt_ids(body)
    max_tokens = _whole(body, "max_tokens", 16)
    if len(prompt) + max_tokens > max_model_len:
        raise Refused(400, f"{len(prompt)} prompt tokens and {max_tokens} more exceed {max_model_len}")
    options = body.get("stream_options")
    return StubRequest(
        prompt=prompt,
        max_tokens=max_tokens,
        n=_whole(body, "n", 1),
        temperature=_temperature(body),
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        return_ids=body.get("return_token_ids") is True,
        logprobs=body.get("logprobs") not in (None, False),
        chat=chat,
        seed=body.get("seed"),
        arrival_s=arrival_s,
    )


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name, default)
    if type(value) is not int or value < 1:
        raise Refused(400, f"{name}: got {value!r}, expected a whole number from 1 on")
    return value


def _temperature(body: Mapping[str, Any]) -> float:
    value = body.get("temperature")
    if value is None:
        return 0.0
    if type(value) not in (int, float) or value < 0:
        raise Refused(400, f"temperature: got {value!r}, expected a number from 0 on")
    return float(value)


def _chat_ids(body: Mapping[str, Any]) -> tuple[int, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refused(400, "messages: expected a list of objects")
    return tuple(Codec.decode(" ".join(str(message.get("content", "")) for message in messages)))


def _prompt_ids(body: Mapping[str, Any]) -> tuple[int, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return tuple(Codec.decode(prompt))
    if not isinstance(prompt, list) or not prompt or not all(type(token) is int and token >= 0 for token in prompt):
        raise Refused(400, "prompt: expected a text or a list of token ids")
    return tuple(prompt)


def continue_prompt(prompt: tuple[int, ...], rng: random.Random | None) -> Iterator[tuple[int, float]]:
    """(token, log-probability) for ever: the successor of the last token's earlier occurrence.

    Of several successors the one that occurred most; of several of those, a fork, `rng` draws one, None takes the
    first. What is said counts from then on. Where there is no earlier occurrence, or a word that is none of the
    probe's, ids counting up from the first ring id are said. A prompt of the probe without its salt finds nothing.
    """
    if prompt[:1] == (SEP,) and prompt[1:2] and prompt[1] not in range(FIRST_SALT, FIRST_RING):
        while True:
            yield SEP, 0.0
    successors: dict[int, Counter[int]] = {}
    for token, after in pairwise(prompt):
        successors.setdefault(token, Counter())[after] += 1
    successors.pop(UNK, None)
    filler = FIRST_RING
    token = prompt[-1] if prompt else UNK
    while True:
        found = successors.get(token)
        if found:
            most = max(found.values())
            choices = [after for after, count in found.items() if count == most]
            token = rng.choice(choices) if rng is not None else choices[0]
            found[token] += 1
            yield token, -math.log(len(choices))
        else:
            token, filler = filler, filler + 1
            yield token, 0.0
