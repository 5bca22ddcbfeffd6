"""Prompts for conformance cases: rings of a given prompt length, rings that share a prefix, forks of a given length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pabench.probe import Fork, ProbeSpec, Ring, draw_fork, draw_rings

RING_OVERHEAD = 3   # SEP, salt, and the first token again
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


def fork_of_prompt_length(spec: ProbeSpec, rng: np.random.Generator, length: int) -> Fork:
    """A fork whose prompt has exactly `length` (>= 7) tokens: its first output is written at position `length`."""
    body = length - 5  # SEP, salt, and the fork token three times
    fork = draw_fork(spec, rng, (body + 1) // 2)
    if body % 2:
        fork = replace(fork, branches=(fork.branches[0], fork.branches[1][:-1]))
    return fork


def longest_fork(spec: ProbeSpec) -> int:
    """Prompt tokens of the longest fork that `spec` has tokens for: half of its ring tokens."""
    return len(spec.ring_ids) // 2


def edge_lengths(block_size: int, multiples: Sequence[int], offset: int, longest: int) -> list[int]:
    """Prompt lengths kB + offset of at most `longest` tokens, k from `multiples`; the shortest fork fits all."""
    lengths = [k * block_size + offset for k in multiples]
    return [length for length in lengths if 7 <= length <= longest]
