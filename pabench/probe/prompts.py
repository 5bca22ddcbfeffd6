"""Prompts whose continuation is known: rings and forks, and how to draw them.

The probe continues `… a b … a` with `b`: each output token is fetched from the cache position behind the earlier
occurrence of the current token. So a prompt is known by its successor relation, and an output names a position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pabench.errors import UsageError
from pabench.probe.spec import FIRST_RING, SEP, ProbeSpec

HEADER_TOKENS = 2  # SEP and the salt, before the first ring token


class ProbePrompt(Protocol):
    """What ring and fork have in common."""

    @property
    def salt(self) -> int:
        """Id of the salt."""
        ...

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids to send."""
        ...

    def successors(self, token: int) -> tuple[int, ...]:
        """Tokens that may follow `token`; empty when this prompt does not hold it."""
        ...

    def owner(self, token: int) -> int | None:
        """First cache position that holds `token`; None when this prompt does not hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Ring:
    """`[SEP] salt r0 r1 … r(N-1) r0`: continued by `r1 r2 … r(N-1) r0 r1 …` for ever.

    `prompt_len` (tokens; N + 3 when None) makes the prompt go round more than once. Tokens are distinct.
    `lead` stands between the salt and the ring and is never read again: it makes a prompt long whose end alone matters.
    """

    tokens: tuple[int, ...]
    salt: int
    prompt_len: int | None = None
    lead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        body = self.lead + self.tokens
        if len(set(body)) != len(body) or not self.tokens:
            raise UsageError(f"a ring needs distinct tokens, at least one, and a lead of others: got {len(body)} "
                             f"tokens, {len(set(body))} distinct")
        if min(body) < FIRST_RING:
            raise UsageError(f"ring tokens are ids from {FIRST_RING} on: got {min(body)}")
        if self.prompt_len is not None and self.prompt_len < self._start + len(self.tokens) + 1:
            raise UsageError(f"a ring of {len(self.tokens)} tokens closes after "
                             f"{self._start + len(self.tokens) + 1} prompt tokens: got prompt_len {self.prompt_len}")

    @property
    def _start(self) -> int:
        """Position of the ring's first token."""
        return HEADER_TOKENS + len(self.lead)

    @property
    def _body_len(self) -> int:
        return self.prompt_len - self._start if self.prompt_len else len(self.tokens) + 1

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids to send."""
        return (SEP, self.salt, *self.lead, *self._go_round(0, self._body_len))

    def expected(self, count: int) -> list[int]:
        """The next `count` tokens of the greedy continuation."""
        return self._go_round(self._body_len, count)

    def _go_round(self, start: int, count: int) -> list[int]:
        size = len(self.tokens)
        return [self.tokens[(start + i) % size] for i in range(count)]

    def successors(self, token: int) -> tuple[int, ...]:
        """The one token that follows `token` in the ring, or none."""
        if token not in self.tokens:
            return ()
        return (self.tokens[(self.tokens.index(token) + 1) % len(self.tokens)],)

    def owner(self, token: int) -> int | None:
        """First cache position that holds `token`."""
        body = self.lead + self.tokens
        return HEADER_TOKENS + body.index(token) if token in body else None


@dataclass(frozen=True, slots=True)
class Fork:
    """`[SEP] salt f x … f y … f` with `y = x XOR 2^b`: after `f`, `x` and `y` have probability 1/2 each.

    A sampled continuation picks a branch at `f` and must then follow it to its end, where it meets `f` again.
    """

    fork: int
    branches: tuple[tuple[int, ...], tuple[int, ...]]
    salt: int

    def __post_init__(self) -> None:
        tokens = (self.fork, *self.branches[0], *self.branches[1])
        if len(set(tokens)) != len(tokens) or min(map(len, self.branches)) < 1 or min(tokens) < FIRST_RING:
            raise UsageError(f"a fork needs two branches of distinct ids from {FIRST_RING} on: got {len(tokens)} "
                             f"tokens, {len(set(tokens))} distinct, the lowest {min(tokens)}")
        if (self.branches[0][0] ^ self.branches[1][0]).bit_count() != 1:
            raise UsageError("the first tokens of a fork's branches differ in exactly one bit: got "
                             f"{self.branches[0][0]} and {self.branches[1][0]}")

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids to send."""
        return (SEP, self.salt, self.fork, *self.branches[0], self.fork, *self.branches[1], self.fork)

    def successors(self, token: int) -> tuple[int, ...]:
        """Both branches' first tokens after the fork, else the one that follows."""
        if token == self.fork:
            return self.branches[0][0], self.branches[1][0]
        for branch in self.branches:
            if token in branch:
                place = branch.index(token) + 1
                return (branch[place] if place < len(branch) else self.fork,)
        return ()

    def branch(self, ids: Sequence[int]) -> int | None:
        """Branch (0 or 1) that an answer took first; None when it took neither."""
        firsts = [branch[0] for branch in self.branches]
        return firsts.index(ids[0]) if ids and ids[0] in firsts else None

    def owner(self, token: int) -> int | None:
        """First cache position that holds `token`."""
        body = self.prompt[HEADER_TOKENS:]
        return HEADER_TOKENS + body.index(token) if token in body else None


def complement(ring: Ring, spec: ProbeSpec) -> Ring:
    """The ring with every bit of every token flipped.

    A head whose lookup falls into the sink says bit 0, so a fault shows only where the expected bit is 1: a ring
    and its complement together show it everywhere. Tokens must be among `spec.paired_ids`.
    """
    ones = spec.vocab_size - 1
    tokens, lead = (tuple(token ^ ones for token in part) for part in (ring.tokens, ring.lead))
    return Ring(tokens, ring.salt, ring.prompt_len, lead)


def draw_rings(
    spec: ProbeSpec, rng: np.random.Generator, lengths: Sequence[int], *, shared_salt: bool = False
) -> list[Ring]:
    """Rings of `lengths` distinct tokens each, no token in two of them, each under a salt of its own if they suffice.

    Tokens come from `spec.paired_ids` where those suffice, so that every ring has a complement.
    Raises UsageError when the vocabulary is too small.
    """
    total = sum(lengths)
    pool = spec.paired_ids if total <= len(spec.paired_ids) else spec.ring_ids
    if total > len(pool):
        raise UsageError(f"{len(lengths)} rings need {total} distinct tokens, probe {spec.preset!r} has {len(pool)}: "
                         "use fewer or shorter rings at once, or the preset 'long'")
    tokens = iter((rng.permutation(len(pool))[:total] + pool.start).tolist())
    return [Ring(_take(tokens, length), salt) for length, salt in
            zip(lengths, _salts(spec, rng, len(lengths), shared_salt), strict=True)]


def draw_fork(spec: ProbeSpec, rng: np.random.Generator, branch_len: int) -> Fork:
    """A fork with two branches of `branch_len` tokens."""
    needed = 2 * branch_len + 1
    if branch_len < 1 or needed > len(spec.ring_ids) // 2:
        raise UsageError(f"a fork of branches of {branch_len} tokens does not fit probe {spec.preset!r}: "
                         f"expected 1 to {(len(spec.ring_ids) // 2 - 1) // 2}")
    pool = (rng.permutation(len(spec.ring_ids)) + FIRST_RING).tolist()
    first = pool.pop()
    partners = [first ^ (1 << bit) for bit in rng.permutation(spec.bits).tolist()]
    second = next(token for token in partners if token >= FIRST_RING)
    rest = iter(token for token in pool if token != second)
    fork, *tails = (_take(rest, count) for count in (1, branch_len - 1, branch_len - 1))
    branches = ((first, *tails[0]), (second, *tails[1]))
    return Fork(fork[0], branches, _salts(spec, rng, 1, shared=False)[0])


def _take(tokens: Iterable[int], count: int) -> tuple[int, ...]:
    iterator = iter(tokens)
    return tuple(next(iterator) for _ in range(count))


def _salts(spec: ProbeSpec, rng: np.random.Generator, count: int, shared: bool) -> list[int]:
    if shared:
        return [int(rng.choice(spec.salt_ids))] * count
    order = rng.permutation(spec.salt_ids).tolist()
    return [order[i % len(order)] for i in range(count)]
