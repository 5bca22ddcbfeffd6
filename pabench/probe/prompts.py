"""Prompts whose continuation is known: rings and forks, and how to draw them.

The probe continues `… a b … a` with `b`: each output token is fetched from the cache position behind the earlier
occurrence of the current token. So a prompt is known by its successor relation, and an output names a position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
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
    `lead`, other tokens, stands between the salt and the ring and is never read again: it makes a prompt long.
    """

    tokens: tuple[int, ...]
    salt: int
    prompt_len: int | None = None
    lead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.tokens)) != len(self.tokens) or not self.tokens:
            raise UsageError(f"a ring needs distinct tokens, at least one: got {len(self.tokens)} tokens, "
                             f"{len(set(self.tokens))} distinct")
        if both := set(self.lead) & set(self.tokens):
            raise UsageError(f"a ring has a lead of other tokens than its own: got {sorted(both)[:8]} in both")
        if min(self.lead + self.tokens) < FIRST_RING:
            raise UsageError(f"ring tokens are ids from {FIRST_RING} on: got {min(self.lead + self.tokens)}")
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


@dataclass(frozen=True)
class Chain:
    """`[SEP] salt body`, any tokens: what may follow a token is whatever followed it before in the prompt."""

    body: tuple[int, ...]
    salt: int

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids to send."""
        return (SEP, self.salt, *self.body)

    def successors(self, token: int) -> tuple[int, ...]:
        """Tokens that stand behind `token` in the body."""
        return self._followers.get(token, ())

    @cached_property
    def _followers(self) -> dict[int, tuple[int, ...]]:
        found: dict[int, dict[int, None]] = {}
        for token, later in pairwise(self.body):
            found.setdefault(token, {})[later] = None
        return {token: tuple(later) for token, later in found.items()}

    def owner(self, token: int) -> int | None:
        """First cache position that holds `token`."""
        return HEADER_TOKENS + self.body.index(token) if token in self.body else None


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


def draw_braid(spec: ProbeSpec, rng: np.random.Generator, num_forks: int, lead: int = 0) -> Chain:
    """Two strands that meet again and again: `f0 x0 f1 x1 … f0 y0 f1 y1 … f0`, each `y` an `x` with one bit flipped.

    After each `f` its `x` and `y` have probability 1/2 each: only the slot that is generated there remembers which it
    was. On its second round an answer must choose as on its first, so every second generated slot is read alone.
    The prompt has 3 + `lead` + 4 * `num_forks` tokens, `lead` of them in front and never read.
    """
    needed = 3 * num_forks + lead
    if num_forks < 1 or needed > len(spec.paired_ids) // 2:
        raise UsageError(f"a braid of {num_forks} forks and a lead of {lead} needs {needed} tokens, probe "
                         f"{spec.preset!r} has {len(spec.paired_ids) // 2} for it: use fewer forks")
    bit = 1 << int(rng.integers(spec.bits))
    # Pairs differ in one bit, the same for all; of those that lie within the ids, what is left over serves as the rest.
    ids = np.arange(spec.paired_ids.start, spec.paired_ids.stop)
    halves = ids[(ids & bit == 0) & (ids | bit < spec.paired_ids.stop)]
    picked = iter(halves[rng.permutation(len(halves))[:needed]].tolist())
    firsts = [token if rng.integers(2) else token | bit for token in _take(picked, num_forks)]
    forks, before = _take(picked, num_forks), _take(picked, lead)
    strands = [[token for i, fork in enumerate(forks) for token in (fork, firsts[i] ^ flip)] for flip in (0, bit)]
    return Chain((*before, *strands[0], *strands[1], forks[0]), _salts(spec, rng, 1, shared=False)[0])


def _take(tokens: Iterable[int], count: int) -> tuple[int, ...]:
    iterator = iter(tokens)
    return tuple(next(iterator) for _ in range(count))


def _salts(spec: ProbeSpec, rng: np.random.Generator, count: int, shared: bool) -> list[int]:
    if shared:
        return [int(rng.choice(spec.salt_ids))] * count
    order = rng.permutation(spec.salt_ids).tolist()
    return [order[i % len(order)] for i in range(count)]
