"""The baseline: each sequence reserves at the start all that it may need, as one contiguous run of blocks.

This is how engines kept their KV cache before paging: the three Orca variants that the vLLM paper compares with.
Blocks are only the unit of bookkeeping here, so that both allocators serve the same model and the same pool; with
blocks of one slot all counts are the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from pabench.errors import UsageError
from reference_engine.memory.allocator import (
    BlockCopy,
    IntegrityError,
    KVSplit,
    SequenceBlocks,
    blocks_for,
    check_cover,
    check_growth,
    check_new,
    check_truncation,
)
from reference_engine.memory.buddy import BuddySpace, chunk_blocks

RESERVATIONS = ("max", "pow2", "oracle")


class ContiguousAllocator:
    """Reserves a run for each sequence, placed in a chunk of a buddy allocator. Nothing is shared: fork copies.

    `reservation` says how many slots a run has:
      max     max_model_len, whatever is asked for
      pow2    the tokens there are, and the output to come rounded up to a power of two (25 tokens reserve 32)
      oracle  exactly final_tokens
    The output to come is taken from what `allocate` is told: final_tokens - num_tokens + 1, since the last token is
    never fed back. An engine only knows max_tokens, so here the oracle knows the bound and not the true length; a
    simulation that announces true lengths gets the paper's. No run is longer than max_model_len or the largest chunk.

    A sequence owns the blocks of its run. What the chunk has beyond them is nobody's and of no use: external waste.
    """

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int, reservation: str = "max") -> None:
        if reservation not in RESERVATIONS:
            raise UsageError(f"reservation is {reservation!r}, expected one of {', '.join(RESERVATIONS)}")
        self._max_run = blocks_for(max_model_len, block_size)
        if reservation == "max" and chunk_blocks(self._max_run) > num_blocks:
            raise UsageError(f"{num_blocks} blocks of {block_size} hold no reservation of max_model_len "
                             f"{max_model_len} tokens, a chunk of {chunk_blocks(self._max_run)} blocks: "
                             "raise --num-blocks or lower --max-model-len")
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, block_size, max_model_len
        self.reservation = reservation
        largest_chunk = 1 << num_blocks.bit_length() - 1
        self._longest = min(max_model_len, largest_chunk * block_size)  # slots of a run, at most
        self._space = BuddySpace(num_blocks)
        self._num_owned = 0  # blocks in runs
        self._seqs: dict[int, SequenceBlocks] = {}

    @property
    def num_free_blocks(self) -> int:
        """See Allocator. The rest of a chunk behind its run is included."""
        return self.num_blocks - self._num_owned

    @property
    def idle_blocks(self) -> Set[int]:
        """See Allocator."""
        return frozenset()

    def _run_blocks(self, num_tokens: int, final_tokens: int) -> int:
        """Blocks of the run that a new sequence reserves."""
        slots = final_tokens
        if self.reservation == "max":
            slots = self.max_model_len
        elif self.reservation == "pow2":
            slots = num_tokens + (1 << (final_tokens - num_tokens).bit_length())
        return blocks_for(min(slots, self._longest), self.block_size)

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """See Allocator."""
        if final_tokens > self._longest:
            return False
        return n <= BuddySpace(self.num_blocks).num_fitting(self._run_blocks(prompt_tokens, final_tokens))

    def allocate(self, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()) -> int | None:
        """See Allocator. `num_tokens` are all the tokens there are: the prompt, and what was generated before."""
        check_new(self._seqs, seq_id, num_tokens, final_tokens)
        if final_tokens > self._longest:
            raise ValueError(f"sequence {seq_id} announces {final_tokens} tokens, a run holds {self._longest}")
        reserved = self._reserve(seq_id, self._run_blocks(num_tokens, final_tokens), num_tokens, final_tokens)
        return 0 if reserved else None

    def _reserve(self, seq_id: int, run_blocks: int, num_tokens: int, final_tokens: int) -> bool:
        """Give a new sequence a run of its own, if there is a chunk for it."""
        first = self._space.take(run_blocks)
        if first is None:
            return False
        self._num_owned += run_blocks
        self._seqs[seq_id] = SequenceBlocks(list(range(first, first + run_blocks)), num_tokens, final_tokens)
        return True

    def append(self, seq_id: int, num_tokens: int = 1) -> list[BlockCopy] | None:
        """See Allocator. Never refused: the run was reserved at the start."""
        held = self._seqs[seq_id]
        check_growth(held, seq_id, num_tokens)
        held.num_tokens += num_tokens
        return []

    def cost_of_new(self, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()) -> int | None:
        """See Allocator."""
        run_blocks = self._run_blocks(num_tokens, final_tokens)
        return run_blocks if self._space.num_fitting(run_blocks) else None

    def cost_of_growth(self, seq_id: int, num_tokens: int = 1) -> int | None:
        """See Allocator."""
        return 0

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        """See Allocator. The run stays reserved."""
        held = self._seqs[seq_id]
        check_truncation(held, seq_id, num_tokens)
        held.num_tokens = num_tokens

    def publish(self, seq_id: int, keys: Sequence[bytes]) -> None:
        """See Allocator. There is no prefix cache: runs are not shared."""

    def slide(self, seq_id: int, position: int) -> None:
        """See Allocator. A run is given up as a whole, so nothing is freed."""

    def reset_prefix_cache(self) -> None:
        """See Allocator. There is no prefix cache."""

    def fork(self, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        """See Allocator. The child reserves as much as its parent did."""
        parent = self._seqs[parent_id]
        check_new(self._seqs, child_id, parent.num_tokens, parent.final_tokens)
        if not self._reserve(child_id, len(parent.blocks), parent.num_tokens, parent.final_tokens):
            return None
        live = blocks_for(parent.num_tokens, self.block_size)
        child = self._seqs[child_id]
        return [BlockCopy(a, b) for a, b in zip(parent.blocks[:live], child.blocks[:live], strict=True)]

    def free(self, seq_id: int) -> None:
        """See Allocator."""
        blocks = self._seqs.pop(seq_id).blocks
        self._num_owned -= len(blocks)
        self._space.give_back(blocks[0])

    def block_table(self, seq_id: int) -> Sequence[int]:
        """See Allocator. All blocks of the run, those behind the tokens included."""
        return self._seqs[seq_id].blocks

    def _num_usable(self) -> int:
        """Free blocks that a reservation can still take. Where lengths vary, some request fits any free chunk."""
        if self.reservation == "max":
            return self._space.num_fitting(self._max_run) * self._max_run
        return self._space.num_free_blocks

    def split(self, written: Mapping[int, int]) -> KVSplit:
        """See Allocator. In a full pool, where the next request does not fit, the paper's "external fragmentation
        and others" is all that is not owned: `free`.
        """
        states = sum(written[seq_id] for seq_id in self._seqs)
        final = sum(held.final_tokens for held in self._seqs.values())
        return KVSplit(
            token_states=states,
            reserved=final - states,
            internal_waste=self._num_owned * self.block_size - final,
            external_waste=(self.num_free_blocks - self._num_usable()) * self.block_size,
            free=self.num_free_blocks * self.block_size,
        )

    def check_integrity(self) -> None:
        """See Allocator."""
        self._space.check_integrity()
        for seq_id, held in self._seqs.items():
            check_cover(held, seq_id, self.block_size)
            first, size = held.blocks[0], len(held.blocks)
            chunk = self._space.taken.get(first, 0)
            if held.blocks != list(range(first, first + size)) or chunk != chunk_blocks(size):
                raise IntegrityError(f"sequence {seq_id} holds {held.blocks}, expected a run from the start of its "
                                     f"chunk of {chunk} blocks")
        owned = sum(len(held.blocks) for held in self._seqs.values())
        round_up = sum(self._space.taken.values()) - owned
        if owned != self._num_owned or len(self._space.taken) != len(self._seqs):
            raise IntegrityError(f"{owned} owned (booked: {self._num_owned}) + {round_up} rounded up + "
                                 f"{self._space.num_free_blocks} free blocks of {self.num_blocks}; "
                                 f"{len(self._space.taken)} chunks of {len(self._seqs)} sequences")

    def check_writable(self, seq_id: int, start: int, stop: int) -> None:
        """See Allocator. Runs are never shared."""
        if stop > self._seqs[seq_id].num_tokens:
            raise IntegrityError(f"sequence {seq_id} is about to write positions [{start}, {stop}) of its "
                                 f"{self._seqs[seq_id].num_tokens}")
