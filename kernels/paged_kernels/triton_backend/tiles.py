"""How big the attention kernel's tiles are, by what it reads. Nothing here depends on the batch.

That is what makes the kernel batch-invariant: how a row is computed follows from its own sequence alone, from the
number of its query rows and its context, never from its neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from paged_kernels.cache import SCALED_DTYPES


class Geometry(NamedTuple):
    """What the kernel is compiled for."""

    num_kv_heads: int
    group: int         # query heads of a KV head
    head_dim: int
    value_dim: int
    query: torch.dtype
    storage: torch.dtype


class Tile(NamedTuple):
    """One specialisation: BLOCK_M lanes of query rows times heads, TILE positions a turn."""

    block_m: int
    tile: int
    num_warps: int
    num_stages: int
    split: int  # positions a work item reads at most, a multiple of `tile`

    def rows(self, group: int) -> int:
        """Query rows of one work item."""
        return max(1, self.block_m // group)


FEW_ROWS = 8         # query rows of a sequence that are still read like a decode: a decode with drafts
SPLIT_ROWS = 64      # a chunk of more rows fills the machine without being split
ROWS_OF_EACH_TILE = (1, FEW_ROWS, SPLIT_ROWS, SPLIT_ROWS + 1)  # one number of query rows for each of `tile_for`'s
NO_SPLIT = 1 << 30
TARGETS = ("nvidia", "blackwell", "amd")
MAX_GROUP = 128
AMD_SHARED_BYTES = 64 << 10  # of a program: the queries of all heads of a KV head stand there


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n."""
    return 1 << (n - 1).bit_length()


def tile_for(num_rows: int, geometry: Geometry, *, target: str = "nvidia") -> Tile:
    """The tile for sequences of `num_rows` query rows: 1, up to FEW_ROWS, up to SPLIT_ROWS, or more.

    `target` is one of TARGETS. "amd" has 64 KiB of shared memory, so that fewer turns are in flight, and warps twice as
    wide, so that half as many have as many registers. On "blackwell" (sm_100) the compiler needs more registers, and
    spills what elsewhere just fits: chunks take half as many rows at a time.
    """
    small_memory, blackwell = target == "amd", target == "blackwell"
    group, lanes = geometry.group, next_power_of_2(max(geometry.head_dim, geometry.value_dim))
    at_least = max(16, next_power_of_2(group))  # tl.dot takes 16 rows or more
    wide = geometry.query == torch.float32      # exact float32 products hold their operands in registers
    converted = geometry.storage in SCALED_DTYPES  # and so do stored values that are widened before the product
    # The look-up of a block is a turn ahead of the keys that it leads to, and takes stages of its own: with 3 the
    # compiler gives keys and values one buffer each, and waits for what it has just asked for. `compile` checks that.
    stages = 2 if small_memory or wide else 5
    if num_rows <= FEW_ROWS:
        most = 32 if converted and not small_memory else 64
        block_m = at_least if num_rows == 1 else max(at_least, min(most, next_power_of_2(FEW_ROWS * group)))
        halved = wide or lanes > 128 or (converted and block_m > 16) or (block_m > 64 and lanes > 64)
        # Short, so that a few sequences of few KV heads fill a GPU; yet parts (group * dim float32 a split, written and
        # read again) stay below an eighth of a decode's keys and values in 16 bits.
        split = max(256, 16 * next_power_of_2(group))
        # With eight, the compiler keeps narrow drafts to 128 registers a thread, and some variants spill; with four,
        # what has more lanes than 32 does.
        narrow_drafts = num_rows > 1 and lanes <= 128 and not wide
        fit_four = (blackwell if block_m > 16 else not converted) or (narrow_drafts and not converted)
        warps = 4 if small_memory or (fit_four and block_m <= 32) else 8
        return Tile(block_m, 32 if halved else 64, warps, stages, split)
    block_m, tile = _chunk_tile(geometry, target, lanes)
    if wide and geometry.storage != torch.float32:
        stages = 1  # a copy that is on its way, and then widened, spills
    split = 2048 if num_rows <= SPLIT_ROWS else NO_SPLIT
    return Tile(max(at_least, block_m), tile, 4 if small_memory else 8, stages, split)


def _chunk_tile(geometry: Geometry, target: str, lanes: int) -> tuple[int, int]:
    """Lanes of query rows times heads, at the least, and positions, of a tile of many rows: the most that do not spill.
    """
    if geometry.query == torch.float32:
        return 32, 32
    if geometry.storage in SCALED_DTYPES:
        return 64 if target == "amd" else 32, 32
    if target == "amd":
        return 64, 32 if lanes > 128 else 64
    if lanes > 128:
        return (32, 32) if target == "blackwell" else (64, 16)
    if lanes > 64 and geometry.group > 64:  # 128 lanes, whatever is said here
        return 128, 32
    return 64 if target == "blackwell" and lanes > 64 else 128, 64
