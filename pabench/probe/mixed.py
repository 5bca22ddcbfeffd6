"""Prompts for a probe of which some layers have a sliding window and others see everything.

What follows a token of the ring is told in two places. Inside the window it is right in the bits that are read there,
and wrong in those of layers that see everything; outside, further back and more often, it is the other way round. So
each token of an answer has to be put together of what either kind of layer sees, and none stands in the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pabench.errors import UsageError
from pabench.probe.prompts import HEADER_TOKENS, Ring
from pabench.probe.spec import FIRST_RING, ProbeSpec

_VOTES = 3  # places outside for the one inside: layers that see all of them go by most


@dataclass(frozen=True, slots=True)
class Parted:
    """`[SEP] salt outside inside r0`, continued as the ring `r0 r1 …`, of which no two tokens stand in a row."""

    ring: Ring
    outside: tuple[int, ...]
    inside: tuple[int, ...]

    @property
    def salt(self) -> int:
        """Id where other probes have their salt."""
        return self.ring.salt

    @property
    def shared(self) -> tuple[int, ...]:
        """What prompts with the same outside begin with."""
        return (*self.ring.prompt[:HEADER_TOKENS], *self.outside)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids to send."""
        return (*self.shared, *self.inside, self.ring.tokens[0])

    def expected(self, count: int) -> list[int]:
        """The next `count` tokens of the greedy continuation."""
        return self.ring.expected(count)

    def successors(self, token: int) -> tuple[int, ...]:
        """The one token that follows `token` in the ring, or none."""
        return self.ring.successors(token)

    def owner(self, token: int) -> int | None:
        """First cache position that holds `token`."""
        return self.prompt.index(token) if token in self.prompt[HEADER_TOKENS:] else None


def longest_parted(spec: ProbeSpec) -> int:
    """Tokens of the longest ring: each takes two places in the window."""
    if spec.window is None or not spec.full_layers:
        raise UsageError(f"probe {spec.preset!r} has no layers with and without a window: serve the preset 'mixed'")
    return spec.window // 2 - 1


def draw_parted(
    spec: ProbeSpec, rng: np.random.Generator, lap: int, turns: int = 1, length: int = 0
) -> list[Parted]:
    """`turns` rings of one and the same `lap` tokens that begin at different ones of them, behind the same outside,
    which begins with other tokens where the prompt is to have `length`: it has at least `shortest_parted` of them.
    """
    assert spec.window is not None
    if not 1 <= lap <= longest_parted(spec) or not 1 <= turns <= lap:
        raise UsageError(f"{turns} rings of {lap} tokens: at most {longest_parted(spec)} tokens, and a ring for each")
    full, windowed = spec.mask_of(full=True), spec.mask_of(full=False)
    tokens: list[int] = []
    others: list[int] = []
    used: set[int] = set()
    wanted_others = spec.window - 2 * lap + max(0, length - shortest_parted(spec, lap))
    for token in (int(each) for each in rng.permutation(np.array(spec.ring_ids))):
        kin = {token, token ^ full, token ^ windowed}
        if kin & used or min(kin) < FIRST_RING:
            continue
        if len(tokens) < lap:
            used |= kin
            tokens.append(token)
        elif len(others) < wanted_others:
            others.append(token)
    filler = (others * (wanted_others // max(1, len(others)) + 1))[:wanted_others]
    lead, between = filler[spec.window - 2 * lap :], filler[: spec.window - 2 * lap]
    follower = dict(zip(tokens, (*tokens[1:], tokens[0]), strict=True))
    salt = int(rng.choice(spec.salt_ids))
    pairs = [each for token in (*tokens[1:], tokens[0]) for each in (token, follower[token] ^ windowed)]
    outside = (*lead, *pairs * _VOTES, *between)
    rings = []
    for turn in range(turns):
        first = turn * lap // turns
        mine = (*tokens[first:], *tokens[:first])
        inside = tuple(each for token in mine for each in (token, follower[token] ^ full))
        rings.append(Parted(Ring(mine, salt), outside, inside))
    return rings


def shortest_parted(spec: ProbeSpec, lap: int) -> int:
    """Prompt tokens of `draw_parted` with rings of `lap` tokens."""
    assert spec.window is not None
    return HEADER_TOKENS + _VOTES * 2 * lap + spec.window + 1
