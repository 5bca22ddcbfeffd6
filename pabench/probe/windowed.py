"""Prompts for a probe with a sliding window: rings behind decoys that no query may see.

A decoy is a token of the ring followed by another one than in the ring, its follower with every bit flipped. It has
left the window when that token is asked for; an engine that looks further finds more decoys than rings and says them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pabench.errors import UsageError
from pabench.probe.prompts import HEADER_TOKENS, Ring
from pabench.probe.spec import ProbeSpec

_OUTVOTED = 2  # decoys of a token for the one place in the window where it stands


@dataclass(frozen=True, slots=True)
class Decoyed:
    """`[SEP] salt before r0 r1 …`: a ring, without a lead, behind tokens that must not be seen any more."""

    ring: Ring
    before: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.ring.lead:
            raise UsageError(f"a ring behind decoys has no lead of its own: got {len(self.ring.lead)} tokens")

    @property
    def salt(self) -> int:
        """Id where other probes have their salt."""
        return self.ring.salt

    @property
    def shared(self) -> tuple[int, ...]:
        """What all rings behind the same decoys begin with."""
        return (*self.ring.prompt[:HEADER_TOKENS], *self.before)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids to send."""
        return (*self.shared, *self.ring.prompt[HEADER_TOKENS:])

    def expected(self, count: int) -> list[int]:
        """The next `count` tokens of the greedy continuation."""
        return self.ring.expected(count)

    def successors(self, token: int) -> tuple[int, ...]:
        """The one token that follows `token` in the ring, or none."""
        return self.ring.successors(token)

    def owner(self, token: int) -> int | None:
        """First cache position that holds `token`."""
        body = self.before + self.ring.tokens
        return HEADER_TOKENS + body.index(token) if token in body else None


def draw_decoyed(
    spec: ProbeSpec, rng: np.random.Generator, decoys: int, turns: int = 1, length: int | None = None
) -> list[Decoyed]:
    """`turns` rings of one and the same W - 1 tokens, W the window, that begin at different ones of them, behind the
    same decoys, those of their first `decoys` tokens: each of their first `decoys` // `turns` answers has some.

    The last value of a decoy stands W positions before the end of the prompt, the first that is not seen. A prompt has
    `shortest_decoyed` tokens; with `length`, so many or up to 2 * `decoys` - 1 less, since there are more decoys then.
    """
    window = _window(spec)
    lap = window - 1
    if not 1 <= turns <= decoys <= lap:
        raise UsageError(f"{turns} rings behind decoys of {decoys} of their {lap} tokens: expected at most as many "
                         "rings as such tokens, and at most a lap of those")
    tokens, salt = _one_of_each_pair(spec, rng, lap), int(rng.choice(spec.salt_ids))
    ones = spec.vocab_size - 1
    # The first token's comes last: its query is the last of the prompt.
    decoy = [token for at in (*range(1, decoys), 0) for token in (tokens[at], tokens[(at + 1) % lap] ^ ones)]
    rounds = _OUTVOTED if length is None else max(_OUTVOTED, (length - HEADER_TOKENS - window) // len(decoy))
    rings = []
    for turn in range(turns):
        first = turn * decoys // turns
        rings.append(Ring((*tokens[first:], *tokens[:first]), salt, prompt_len=HEADER_TOKENS + window))
    return [Decoyed(ring, tuple(decoy) * rounds) for ring in rings]


def shortest_decoyed(spec: ProbeSpec, decoys: int) -> int:
    """Prompt tokens of `draw_decoyed` with decoys of so many tokens."""
    return HEADER_TOKENS + _window(spec) + _OUTVOTED * 2 * decoys


def draw_at_the_edge(spec: ProbeSpec, rng: np.random.Generator, lead: int) -> Decoyed:
    """A ring whose every second answer, for the first third of the window, has one decoy: exactly W positions away, W
    the window, it has just left. Seen, it ties with the ring: no token need be wrong, but none is certain.

    The prompt has 4 + W + `lead` tokens, `lead` (at least 0) of them in front and never read.
    """
    window = _window(spec)
    lap = window - window // 3
    # Behind the header and the lead: r0 c1 r2 c3 …, from W + 1 positions before the prompt's last token, r0, on.
    room = window + 1 - lap
    if room < 2 or lead < 0:
        raise UsageError(f"no ring behind decoys at the edge of a window of {window} tokens with a lead of {lead}")
    ids = _one_of_each_pair(spec, rng, lap + lead + 1)
    tokens, others = ids[:lap], ids[lap:]
    ones = spec.vocab_size - 1
    decoys = [tokens[at] if at % 2 == 0 else tokens[at] ^ ones for at in range(room - room % 2)]
    between = others[:room % 2]
    return Decoyed(Ring(tokens, int(rng.choice(spec.salt_ids))), (*others[1:], *decoys, *between))


def _one_of_each_pair(spec: ProbeSpec, rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """Distinct tokens of which none is the complement of another."""
    lower = spec.vocab_size // 2 - spec.paired_ids.start
    if count > lower:
        raise UsageError(f"{count} tokens without their complements: probe {spec.preset!r} has {lower}")
    ones = spec.vocab_size - 1
    drawn = spec.paired_ids.start + rng.permutation(lower)[:count]
    return tuple(int(token) ^ (ones if flip else 0) for token, flip in zip(drawn, rng.integers(2, size=count),
                                                                         strict=True))


def _window(spec: ProbeSpec) -> int:
    if spec.window is None:
        raise UsageError(f"probe {spec.preset!r} has no sliding window: serve the preset 'window'")
    return spec.window
