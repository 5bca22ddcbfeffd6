"""The prefix cache keeps a view of a sequence's row of the table: when the row changes, so does what it has cached."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import PrefixCache

BUG = "minisgl-cache-stores-view-of-page-table"
MUST_FAIL = ("alloc/hit-oracle",)
ENGINE_ARGS: tuple[str, ...] = ()

_rows: dict[tuple[int, bytes], tuple[list[int], int]] = {}  # (cache, key) -> a row, and the place in it


def apply() -> None:
    """One row for all: the next sequence overwrites what the view shows."""
    publish, find = PagedAllocator.publish, PrefixCache.find
    row: list[int] = []

    def publish_views(self: PagedAllocator, seq_id: int, keys: Sequence[bytes]) -> None:
        blocks = self._seqs[seq_id].blocks
        row[: len(blocks)] = blocks
        publish(self, seq_id, keys)
        for at, key in enumerate(keys):
            _rows[id(self._cache), key] = (row, at)

    def find_through_views(self: PrefixCache, keys: Sequence[bytes]) -> list[int]:
        seen = [_rows[id(self), key] for key in keys[: len(find(self, keys))]]
        blocks = [view[at] for view, at in seen]
        return blocks if all(block in self._keys for block in blocks) else []

    PagedAllocator.publish = publish_views  # type: ignore[method-assign]
    PrefixCache.find = find_through_views  # type: ignore[method-assign]
