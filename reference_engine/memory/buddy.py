"""A buddy allocator: chunks of 1, 2, 4, 8, … blocks, halved on demand and joined again when both halves are free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from reference_engine.memory.allocator import IntegrityError


def chunk_blocks(num_blocks: int) -> int:
    """Blocks of the smallest chunk that holds `num_blocks` >= 1: the next power of two."""
    return 1 << (num_blocks - 1).bit_length()


@dataclass(slots=True)
class BuddySpace:
    """Blocks [0, num_blocks) in chunks: 2**k blocks each, the first one's number a multiple of 2**k.

    A space that is no power of two starts as the sum of its binary parts, largest first (11 blocks are 8 + 2 + 1):
    no chunk is larger than the first part. The buddy of a chunk differs from it in bit k of its first block. Behind a
    part there are fewer blocks than it has, so no buddy of its size, and parts never join.

    Taking and giving back look at each size at most once: there are log2(num_blocks) of them.
    """

    num_blocks: int
    num_free_blocks: int = field(init=False)          # in free chunks
    taken: dict[int, int] = field(init=False)         # first block -> blocks of the chunk
    _free: list[dict[int, None]] = field(init=False)  # k -> first blocks of the free chunks of 2**k

    def __post_init__(self) -> None:
        self.num_free_blocks, self.taken = self.num_blocks, {}
        self._free = [{} for _ in range(self.num_blocks.bit_length())]
        first = 0
        for k in reversed(range(len(self._free))):
            if self.num_blocks >> k & 1:
                self._free[k][first] = None
                first += 1 << k

    def take(self, num_blocks: int) -> int | None:
        """First block of a chunk that holds `num_blocks` >= 1, from the smallest free one; None: there is none."""
        wanted = (num_blocks - 1).bit_length()
        for k in range(wanted, len(self._free)):
            if self._free[k]:
                break
        else:
            return None
        first, _ = self._free[k].popitem()
        for half in range(wanted, k):
            self._free[half][first + (1 << half)] = None
        self.taken[first] = 1 << wanted
        self.num_free_blocks -= 1 << wanted
        return first

    def give_back(self, first: int) -> None:
        """Free the chunk that starts at block `first`, and join it with its buddy as long as that is free too.

        Raises KeyError when no taken chunk starts there.
        """
        size = self.taken.pop(first)
        self.num_free_blocks += size
        k = size.bit_length() - 1
        while (buddy := first ^ 1 << k) in self._free[k]:
            del self._free[k][buddy]
            first = min(first, buddy)
            k += 1
        self._free[k][first] = None

    def num_fitting(self, num_blocks: int) -> int:
        """How many chunks that hold `num_blocks` >= 1 can be taken one after the other."""
        wanted = (num_blocks - 1).bit_length()
        return sum(len(self._free[k]) << k - wanted for k in range(wanted, len(self._free)))

    def free_chunks(self) -> dict[int, int]:
        """First block -> blocks, of the free chunks."""
        return {first: 1 << k for k, firsts in enumerate(self._free) for first in firsts}

    def check_integrity(self) -> None:
        """Raise IntegrityError unless chunks are aligned, disjoint, joined as far as can be, and make up the space."""
        free = self.free_chunks()
        num_free, num_taken = sum(free.values()), sum(self.taken.values())
        if num_free != self.num_free_blocks or num_free + num_taken != self.num_blocks:
            raise IntegrityError(f"free {_terms(free)} = {num_free} (booked: {self.num_free_blocks}) + taken "
                                 f"{_terms(self.taken)} = {num_taken} != {self.num_blocks} blocks")
        end = 0
        for first, size in sorted([*free.items(), *self.taken.items()]):
            if first != end or first % size:
                raise IntegrityError(f"a chunk of {size} blocks starts at {first}, the one before ends at {end}: "
                                     f"expected chunks that follow each other, at multiples of their sizes")
            end += size
        apart = [(first, size) for first, size in free.items() if free.get(first ^ size) == size]
        if apart:
            raise IntegrityError(f"free buddies that were not joined, (first block, blocks): {sorted(apart)[:8]}")


def _terms(chunks: dict[int, int]) -> str:
    """A sum by size, such as 3 x 16 + 1 x 4."""
    return " + ".join(f"{n} x {size}" for size, n in sorted(Counter(chunks.values()).items(), reverse=True)) or "0"
