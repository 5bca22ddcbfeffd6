"""Who owns which block: the seam that every allocator fulfils.

An allocator knows sequences by an id, counts slots in blocks, and touches no KV memory: where contents must move it
answers with the copies that the caller has to do before the next write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class BlockCopy(NamedTuple):
    """Contents of block `source` that must stand in block `target` before the next write."""

    source: int
    target: int


class IntegrityError(RuntimeError):
    """An allocator's books do not add up. The text has all terms of the sum."""


@dataclass(frozen=True, slots=True)
class KVSplit:
    """Where the slots of the pool are, exactly; each physical slot is counted once, however many sequences share it.

    token_states    slots that hold the key and value of a token
    reserved        owned, still empty, and to be used if the owning request runs to its max_tokens
    internal_waste  owned, and never to be used by its owners
    external_waste  not owned, and of no use: the rest of each chunk behind its reservation, and what would remain of
                    the free chunks after as many reservations as fit (contiguous); 0 for paged, any free block serves
    free            not owned, `external_waste` included

    Always token_states + reserved + internal_waste + free == num_blocks * block_size.
    A slot shared by several sequences is written, or to be used, when that holds for one of them.
    """

    token_states: int
    reserved: int
    internal_waste: int
    external_waste: int
    free: int


class Allocator(Protocol):
    """The seam. A sequence's positions [0, num_tokens) have slots in its block table's blocks, in order.

    Refusal is a value (False or None) and means: no memory now, nothing has changed. A broken promise of the caller
    (an unknown id, an id twice, more tokens than announced) raises ValueError or KeyError, and changes nothing either.
    """

    num_blocks: int
    block_size: int

    @property
    def num_free_blocks(self) -> int:
        """Blocks without an owner."""
        ...

    @property
    def idle_blocks(self) -> Set[int]:
        """Those of the free blocks that the prefix cache keeps. Valid until the next call."""
        ...

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """Whether an empty pool holds n sequences of `final_tokens` that were forked behind a prompt."""
        ...

    def allocate(self, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()) -> int | None:
        """Give a new sequence slots for its first `num_tokens` >= 1; it will never ask for more than `final_tokens`.

        `keys` name its full blocks for the prefix cache. Returns how many of its first tokens have their keys and
        values in place already: always fewer than num_tokens, 0 without a prefix cache.
        """
        ...

    def append(self, seq_id: int, num_tokens: int = 1) -> list[BlockCopy] | None:
        """Make the next `num_tokens` slots of a sequence its own to write. Do the copies before writing."""
        ...

    def cost_of_new(self, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()) -> int | None:
        """How many of the free blocks `allocate` would take, idle ones that are found included. None: it refuses."""
        ...

    def cost_of_growth(self, seq_id: int, num_tokens: int = 1) -> int | None:
        """How many of the free blocks `append` would take. None: it refuses."""
        ...

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        """Give back all slots but the first `num_tokens` >= 1."""
        ...

    def publish(self, seq_id: int, keys: Sequence[bytes]) -> None:
        """The first len(keys) blocks hold computed tokens, and may be found under these keys from now on."""
        ...

    def slide(self, seq_id: int, position: int) -> None:
        """No position below `position` is read or written again. Blocks wholly below become a HOLE in the table."""
        ...

    def fork(self, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        """Give `child_id` the parent's contents. Do the copies before anything is written."""
        ...

    def free(self, seq_id: int) -> None:
        """Give up all that a sequence holds."""
        ...

    def block_table(self, seq_id: int) -> Sequence[int]:
        """Blocks of a sequence, first position first. Valid until the next call that changes the sequence."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget every published block. What sequences hold stays theirs."""
        ...

    def split(self, written: Mapping[int, int]) -> KVSplit:
        """The exact split, given how many tokens of each sequence have their keys and values written."""
        ...

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the books add up."""
        ...

    def check_writable(self, seq_id: int, start: int, stop: int) -> None:
        """Raise IntegrityError unless the sequence alone owns the slots of its positions [start, stop)."""
        ...


HOLE = -1  # in a block table: a block that was given up behind a sliding window


@dataclass(slots=True)
class SequenceBlocks:
    """What one sequence holds: `blocks` cover positions [0, num_tokens), and it will never need more than `final`."""

    blocks: list[int]
    num_tokens: int
    final_tokens: int
    num_holes: int = 0      # leading blocks that were given up
    num_published: int = 0  # leading blocks that the prefix cache knows


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` slots."""
    return -(-num_tokens // block_size)


def check_new(seqs: Mapping[int, SequenceBlocks], seq_id: int, num_tokens: int, final_tokens: int) -> None:
    """Raise ValueError unless a sequence may come into being so."""
    if seq_id in seqs:
        raise ValueError(f"sequence {seq_id} already has blocks")
    if not 1 <= num_tokens <= final_tokens:
        raise ValueError(f"sequence {seq_id} asks for {num_tokens} tokens now and {final_tokens} in the end")


def check_growth(held: SequenceBlocks, seq_id: int, num_tokens: int) -> None:
    """Raise ValueError unless a sequence may grow so."""
    if num_tokens < 1 or held.num_tokens + num_tokens > held.final_tokens:
        raise ValueError(f"sequence {seq_id} has {held.num_tokens} tokens and asks for {num_tokens} more, "
                         f"it announced {held.final_tokens} in the end")


def check_truncation(held: SequenceBlocks, seq_id: int, num_tokens: int) -> None:
    """Raise ValueError unless a sequence may shrink so."""
    if not 1 <= num_tokens <= held.num_tokens:
        raise ValueError(f"sequence {seq_id} has {held.num_tokens} tokens and cannot be cut to {num_tokens}")


def check_cover(held: SequenceBlocks, seq_id: int, block_size: int) -> None:
    """Raise IntegrityError unless a sequence's blocks are distinct and cover its tokens."""
    live = held.blocks[held.num_holes :]
    if blocks_for(held.num_tokens, block_size) > len(held.blocks) or len(set(live)) != len(live) or HOLE in live:
        raise IntegrityError(f"sequence {seq_id} has {held.num_tokens} tokens in blocks {held.blocks} of {block_size}, "
                             f"the first {held.num_holes} given up")
