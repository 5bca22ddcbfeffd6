"""What requests of different sessions have in common at the beginning of their prompts, block by block.

A prefix cache holds such a block once, however many requests read it. Records name the blocks, so that live tokens can
be counted with each of them once (`analysis.kv`).
"""

from __future__ import annotations

from collections.abc import Sequence

from pabench.load.schedule import ScheduledRequest

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
    ahead: list[tuple[ScheduledRequest, int]] = [(request, -1) for request in requests]  # and its last shared block
    count = at = 0
    while ahead:  # block by block: behind one that nobody shares nothing is shared, and nothing of it is kept
        alike: dict[tuple[int, int], list[ScheduledRequest]] = {}
        for request, parent in ahead:
            units = _units(request, at, size)
            if len(units) == size:
                alike.setdefault((parent, hash(units)), []).append(request)
        ahead = []
        for together in alike.values():
            if len({request.session for request in together}) > 1:
                for request in together:
                    found.setdefault(request.index, []).append(count)
                    ahead.append((request, count))
                count += 1
        at += size
    return found


def _units(request: ScheduledRequest, at: int, size: int) -> tuple[object, ...]:
    """`size` tokens of its prompt from `at` on, words where it is text; fewer at its end."""
    prompt = request.request.prompt
    return tuple(prompt.split(maxsplit=at + size)[at:at + size]) if isinstance(prompt, str) else tuple(
        prompt[at:at + size])
