"""Prompts for conformance cases: rings of a given prompt length, rings that share a prefix, forks of a given length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pabench.probe import Chain, Fork, ProbeSpec, Ring, draw_braid, draw_fork, draw_rings

RING_OVERHEAD = 3   # SEP, salt, and the first token again
HEADER_TOKENS = 2   # of these, SEP and salt
SHORTEST_RING = 4   # prompt tokens; a ring of one token


def rings_of_prompt_lengths(spec: ProbeSpec, rng: np.random.Generator, lengths: Sequence[int]) -> list[Ring]:
    """Rings whose prompts have exactly `lengths` tokens, no token in two of them."""
    return draw_rings(spec, rng, [length - RING_OVERHEAD for length in lengths])


def rings_with_shared_prefix(
    spec: ProbeSpec, rng: np.random.Generator, shared: int, tail: int, count: int
) -> list[Ring]:
    """`count` rings whose prompts agree in their first `shared` tokens (SEP and salt too) and then in none.

    Each has `tail` tokens of its own before it closes.
    """
    drawn = draw_rings(spec, rng, [shared - 2, *[tail] * count], shared_salt=True)
    prefix = drawn[0].tokens
    return [Ring(prefix + ring.tokens, ring.salt) for ring in drawn[1:]]


def long_rings(
    spec: ProbeSpec, rng: np.random.Generator, prompt_lengths: Sequence[int], read: int
) -> list[Ring]:
    """Rings of `read` tokens at the end of prompts of `prompt_lengths` (> read + 3) tokens: only the end is read.

    What stands before may repeat itself, since the vocabulary is small. No token is in two prompts.
    """
    share = len(spec.paired_ids) // len(prompt_lengths) - read
    rings = []
    leads = [length - RING_OVERHEAD - read for length in prompt_lengths]
    for ring, lead in zip(draw_rings(spec, rng, [read + min(lead, share) for lead in leads]), leads, strict=True):
        before = ring.tokens[read:]
        rings.append(Ring(ring.tokens[:read], ring.salt, lead=(before * (lead // len(before) + 1))[:lead]))
    return rings


def second_turn(
    spec: ProbeSpec, rng: np.random.Generator, first: Ring, answer: int, tail: int, *, at_seam: bool = False
) -> Chain:
    """A conversation's next prompt: `first`, its answer of so many tokens (< its ring's), then `tail` new tokens.

    It ends with a token of the first turn, so that the first turn is read: from behind the place where the answer
    ended, up to there. With `at_seam` it ends with the answer's last token, which two tokens follow then: the one
    that the ring demands, and the tail's first. They differ in one bit, so each has probability 1/2 if both slots
    are whole, and one of them 1 if the other's key is not.
    """
    size = len(first.tokens)
    going_on = first.tokens[(answer + 1) % size]
    bits = (1 << int(bit) for bit in rng.permutation(spec.bits))
    partner = next(going_on ^ bit for bit in bits if going_on ^ bit in spec.ring_ids
                   and going_on ^ bit not in first.tokens)
    free = sorted({*spec.paired_ids} - {*first.tokens, partner})
    others = [free[int(at)] for at in rng.choice(len(free), tail - 1, replace=False)]
    end = first.tokens[answer % size] if at_seam else going_on
    body = (*first.prompt[2:], *first.expected(answer), partner, *others, end)
    return Chain(body, first.salt)


def fork_of_prompt_length(spec: ProbeSpec, rng: np.random.Generator, length: int) -> Fork:
    """A fork whose prompt has exactly `length` (>= 7) tokens: its first output is written at position `length`."""
    body = length - 5  # SEP, salt, and the fork token three times
    fork = draw_fork(spec, rng, (body + 1) // 2)
    if body % 2:
        fork = replace(fork, branches=(fork.branches[0], fork.branches[1][:-1]))
    return fork


def braid_of_prompt_length(spec: ProbeSpec, rng: np.random.Generator, length: int) -> Chain:
    """A braid whose prompt has exactly `length` (>= 7) tokens; half as many tokens of answer go round it once."""
    return draw_braid(spec, rng, (length - 3) // 4, (length - 3) % 4)


def longest_fork(spec: ProbeSpec) -> int:
    """Prompt tokens of the longest fork that `spec` has tokens for."""
    return len(spec.ring_ids) // 2


def longest_braid(spec: ProbeSpec) -> int:
    """Prompt tokens of the longest braid that `spec` has tokens for."""
    return len(spec.paired_ids) // 2


def shared_by_all(block_size: int) -> int:
    """Tokens in whole blocks that any two prompts may share, since they begin alike: none in blocks of usual size."""
    return HEADER_TOKENS // block_size * block_size


def edge_lengths(block_size: int, multiples: Sequence[int], offset: int, longest: int) -> list[int]:
    """Prompt lengths kB + offset of at most `longest` tokens, k from `multiples`; the shortest braid fits all."""
    lengths = [k * block_size + offset for k in multiples]
    return [length for length in lengths if 7 <= length <= longest]
