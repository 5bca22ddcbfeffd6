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
    numbers: dict[int, int] = {}  # by the hash of a block and of all before it: of 64 bits, which are enough
    session_of: list[int] = []    # of each number, the first that had it
    shared: list[bool] = []       # with another session
    chains: dict[int, list[int]] = {}
    for request in requests:
        prompt = request.request.prompt
        units: Sequence[object] = prompt.split() if isinstance(prompt, str) else prompt
        chain, prefix = [], 0
        for at in range(0, len(units) - size + 1, size):
            prefix = hash((prefix, *units[at:at + size]))
            number = numbers.setdefault(prefix, len(numbers))
            if number == len(shared):
                session_of.append(request.session)
                shared.append(False)
            elif session_of[number] != request.session:
                shared[number] = True
            chain.append(number)
        chains[request.index] = chain
    found = {index: [number for number in chain if shared[number]] for index, chain in chains.items()}
    return {index: chain for index, chain in found.items() if chain}
