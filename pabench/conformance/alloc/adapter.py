"""The seam to a block manager: what an adapter of the allocator level has.

The least is six operations and `reset`. All else is optional: an adapter that names a capability has its methods.

    capability      method                                     asked by
    fork            fork                                       sharing, copy on write
    sharing         -                                          fork takes no block for what is full already
    paged           -                                          a sequence holds the blocks of its tokens and no more
    prefix_cache    computed, and `allocate` finds             the hit oracle
    extra_keys      `allocate` heeds `extra`                   adapters, images, salts
    cost            cost                                       predictions
    admission       can_ever_hold                              what can never fit
    truncate        truncate                                   speculation taken back
    window          slide                                      sliding windows
    swap            swap_out, swap_in                          host memory
    block_keys      block_keys                                 what a block is found by
    slots           slots                                      the index of a slot in the whole cache
    scheduler       scheduler                                  schedule sanity, liveness

What they are called with, and answer:

    fork(parent, child) -> copies, or None: refused
    computed(seq, num_tokens)                     the first num_tokens tokens are computed: whole blocks may be found
    cost(operation, seq, tokens, extra) -> blocks that "allocate" or "append" of these would take from the free ones,
                                                  those included that are found and held by nobody; None: a refusal
    can_ever_hold(prompt_tokens, final_tokens, n) -> whether an idle pool holds n forks of a prompt in the end
    truncate(seq, num_tokens)                     tokens behind the first num_tokens, never computed, are taken back
    slide(seq, position)                          positions before this one are not reached any more
    swap_out(seq, num_computed) -> copies to host blocks, or None: refused; the sequence holds no block then,
                                                  and `free` ends it there
    swap_in(seq) -> (tokens that the prefix cache still had, copies from host blocks for the rest), or None: refused
    block_keys(pool, tokens, extra) -> bytes for each whole block
    slots(seq, start, stop) -> the index in the whole cache of each of these positions
    scheduler(pool, limits) -> a SchedulerAdapter, see schedule.py
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

METHODS: dict[str, tuple[str, ...]] = {  # capability -> the methods that an adapter with it has
    "fork": ("fork",), "sharing": (), "paged": (), "prefix_cache": ("computed",), "extra_keys": (), "cost": ("cost",),
    "admission": ("can_ever_hold",), "truncate": ("truncate",), "window": ("slide",), "swap": ("swap_out", "swap_in"),
    "block_keys": ("block_keys",), "slots": ("slots",), "scheduler": ("scheduler",),
}
CAPABILITIES = frozenset(METHODS)

Copies = Sequence[tuple[Hashable, Hashable]]  # (source block, target block), all as if at once, before the next write


@dataclass(frozen=True, slots=True)
class Pool:
    """What a trace begins with: an empty pool. It is also the case that `unsupported` is asked about.

    `max_tokens` bounds every sequence. `caching`: computed blocks may be found again. `window`: how far attention
    looks back, None: over everything. `host_blocks`: what there is to swap with.
    """

    num_blocks: int
    block_size: int  # tokens
    max_tokens: int
    caching: bool = False
    window: int | None = None
    host_blocks: int = 0


@runtime_checkable
class AllocatorAdapter(Protocol):
    """A block manager under test. Sequences have small integers for names, blocks whatever the manager likes.

    Refusal is a value, None, and means: no room now, nothing has changed.
    """

    capabilities: frozenset[str]

    def describe(self) -> str:
        """What really runs."""
        ...

    def unsupported(self, case: Any) -> list[str]:
        """Why a `Pool` cannot be had; an empty list where it can."""
        ...

    def reset(self, pool: Pool) -> None:
        """Begin anew with an empty pool. What was held before is gone."""
        ...

    def allocate(self, seq: int, tokens: Sequence[int], extra: Sequence[str] = ()) -> int | None:
        """Slots for a new sequence's first tokens. How many of them, from the first on, have their contents in place
        already: blocks of the prefix cache. `extra` is what their contents depend on beside the tokens.
        """
        ...

    def append(self, seq: int, tokens: Sequence[int]) -> Copies | None:
        """Slots for more tokens, the sequence's own to write after the copies are done."""
        ...

    def free(self, seq: int) -> None:
        """Give up all that a sequence holds, in host memory too."""
        ...

    def block_table(self, seq: int) -> Sequence[Hashable]:
        """The blocks of a sequence, first position first; None where one was given up behind a window."""
        ...

    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds, those included that the prefix cache keeps."""
        ...
