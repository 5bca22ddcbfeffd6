"""Prompts of a workload: rings that can be told apart, forks, or random words.

Requests that run at the same time get disjoint tokens where the vocabulary allows, so that a foreign token names its
owner. Where it does not, they get distinct salts: a foreign slot then reads as "not found". Where there are not enough
salts either, or open arrivals may have more in flight than was foreseen, neither is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pabench.engines.wording import COMMON_WORDS
from pabench.errors import UsageError
from pabench.probe import Fork, ProbeSpec, Ring, draw_fork

# What tells a foreign token from a request's own: its id, its salt, nothing but chance, or (nothing verified) nothing.
Isolation = Literal["tokens", "salts", "chance", "none"]

MIN_PROMPT_TOKENS = {"probe": 5, "fork": 7, "text": 1}
_RING_EXTRA = 3   # SEP, salt and the first token again
_FORK_EXTRA = 5   # SEP, salt and the fork token three times


@dataclass(frozen=True, slots=True)
class Lanes:
    """Which requests may share tokens: those of one lane, which never run at the same time if `disjoint`.

    `lane[i]` is the lane of request `i`; lane `k` draws its tokens from `starts[k] : starts[k] + widths[k]`
    (offsets into the probe's ring ids).
    """

    disjoint: bool
    lane: tuple[int, ...]
    starts: tuple[int, ...]
    widths: tuple[int, ...]


def lay_lanes(pool: int, ring_lengths: Sequence[int], users: Sequence[int] | None) -> Lanes:
    """Share `pool` ids out. `users`: user of each request; None for open arrivals, where neighbours overlap."""
    count = len(ring_lengths)
    if users is not None:
        need = [0] * (max(users) + 1)
        for length, user in zip(ring_lengths, users, strict=True):
            need[user] = max(need[user], length)
        if sum(need) <= pool:
            starts = np.concatenate([[0], np.cumsum(need)[:-1]]).tolist()
            return Lanes(True, tuple(users), tuple(starts), tuple(need))
    else:
        width = max(ring_lengths)
        num_lanes = min(count, pool // width)
        if num_lanes >= 2:
            lane = tuple(i % num_lanes for i in range(count))
            # Neighbours are disjoint in any case; of lanes used again, an engine that falls behind may run two.
            return Lanes(num_lanes >= count, lane, tuple(k * width for k in range(num_lanes)), (width,) * num_lanes)
    return Lanes(False, (0,) * count, (0,), (pool,))


def told_apart(spec: ProbeSpec, count: int, users: Sequence[int] | None, disjoint: bool) -> Isolation:
    """How `count` probe prompts are told apart whatever the engine does; any number of open arrivals may be in flight.

    `disjoint`: their tokens are, as `Lanes` says.
    """
    if disjoint:
        return "tokens"
    at_once = count if users is None else max(users) + 1
    return "salts" if at_once <= len(spec.salt_ids) else "chance"


def draw_salts(spec: ProbeSpec, rng: np.random.Generator, count: int, users: Sequence[int] | None) -> list[int]:
    """A salt for each request: two users never share one while there are as many salts as users."""
    order = rng.permutation(spec.salt_ids).tolist()
    if users is None or max(users) >= len(order):
        return [order[i % len(order)] for i in range(count)]
    num_users = max(users) + 1
    turns = [0] * num_users
    salts = []
    for user in users:
        own = order[user::num_users]
        salts.append(own[turns[user] % len(own)])
        turns[user] += 1
    return salts


def draw_probe_prompts(
    spec: ProbeSpec, rng: np.random.Generator, prompt_tokens: Sequence[int], users: Sequence[int] | None,
    ids: range | None = None,
) -> tuple[list[Ring], bool]:
    """A ring for each request, of exactly `prompt_tokens`, and whether those at the same time are disjoint.

    `ids`: what their tokens may be, all that the probe has by default.
    """
    ids = spec.ring_ids if ids is None else ids
    lengths = [min(tokens - _RING_EXTRA, len(ids)) for tokens in prompt_tokens]
    lanes = lay_lanes(len(ids), lengths, users)
    one_each = tuple(ids)  # of which all rings are made: with numbers of their own they take 2.4 times the memory
    rings = []
    for i, salt in enumerate(draw_salts(spec, rng, len(lengths), users)):
        lane = lanes.lane[i]
        offsets = rng.permutation(lanes.widths[lane])[: lengths[i]] + lanes.starts[lane]
        rings.append(Ring(tuple(map(one_each.__getitem__, offsets.tolist())), salt, prompt_tokens[i]))
    return rings, lanes.disjoint


def draw_fork_prompts(
    spec: ProbeSpec, rng: np.random.Generator, prompt_tokens: Sequence[int], users: Sequence[int] | None
) -> list[Fork]:
    """A fork for each request, of `prompt_tokens` or one less (its two branches are of one length)."""
    longest = max(prompt_tokens)
    if longest - _FORK_EXTRA > len(spec.ring_ids) // 2:
        raise UsageError(f"fork prompts of {longest} tokens do not fit probe {spec.preset!r}: expected at most "
                         f"{len(spec.ring_ids) // 2 + _FORK_EXTRA}; lower prompt_tokens.max")
    salts = draw_salts(spec, rng, len(prompt_tokens), users)
    return [replace(draw_fork(spec, rng, (tokens - _FORK_EXTRA) // 2), salt=salt)
            for tokens, salt in zip(prompt_tokens, salts, strict=True)]


def draw_texts(
    spec: ProbeSpec | None, rng: np.random.Generator, prompt_tokens: Sequence[int]
) -> list[tuple[int, ...] | str]:
    """Random prompts: ids of the probe where the engine serves it, else words, one for each token wanted."""
    if spec is not None:
        return [tuple(rng.choice(spec.ring_ids, size=tokens).tolist()) for tokens in prompt_tokens]
    return [" ".join(rng.choice(COMMON_WORDS, size=tokens).tolist()) for tokens in prompt_tokens]
