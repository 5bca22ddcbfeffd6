"""What requests of different sessions have in common at the beginning of their prompts, block by block.

A prefix cache holds such a block once, however many requests read it. Records name the blocks, so that live tokens can
be counted with each of them once (`analysis.kv`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from pabench.load.schedule import ScheduledRequest

_WORD = re.compile(r"\S+")
_LEAST = 16  # tokens: a finer count of an engine with smaller blocks would cost more than it tells


def counted_block_size(block_size: int | None) -> int:
    """Tokens of a block as it is counted here: the engine's size, of small blocks a multiple; 16 where none is told."""
    size = block_size or _LEAST
    return size * -(-_LEAST // size)


def prefix_blocks(requests: Sequence[ScheduledRequest], size: int) -> dict[int, list[int]]:
    """Index -> numbers of the blocks of `size` tokens that the prompt begins with and another session's prompt does
    too. Equal numbers are equal blocks behind equal prefixes. Requests without one are left out.
    """
    found: dict[int, list[int]] = {}
    ahead = [(request, _units(request), -1) for request in requests]  # with its last shared block
    count = 0
    while ahead:  # block by block: behind one that nobody shares nothing is shared, and nothing of it is kept
        alike: dict[tuple[int, int], list[tuple[ScheduledRequest, Iterator[object]]]] = {}
        for request, units, parent in ahead:
            block = tuple(islice(units, size))
            if len(block) == size:
                alike.setdefault((parent, hash(block)), []).append((request, units))
        ahead = []
        for together in alike.values():
            if len({request.session for request, _ in together}) > 1:
                for request, units in together:
                    found.setdefault(request.index, []).append(count)
                    ahead.append((request, units, count))
                count += 1
    return found


def _units(request: ScheduledRequest) -> Iterator[object]:
    """The tokens of its prompt in turn, words where it is text: of few prompts more than a beginning is asked for."""
    prompt = request.request.prompt
    return (word.group() for word in _WORD.finditer(prompt)) if isinstance(prompt, str) else iter(prompt)
