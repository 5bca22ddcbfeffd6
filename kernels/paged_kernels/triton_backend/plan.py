"""The Triton backend of the seam: a batch planned on the host, launched once a layer.

On a GPU, or on CPU tensors with TRITON_INTERPRET=1 set before triton is imported (exact, and slow: for tests).
A plan with a `capacity` keeps its arrays where they are and its grids as they are, so that a CUDA graph can hold the
launches: `refill` gives it the next batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from paged_kernels.cache import KVCache
from paged_kernels.scoring import Scoring
from paged_kernels.triton_backend.device import check_device, describe_device, target_of
from paged_kernels.triton_backend.launch import Parts, geometry_of, launch_attend, launch_merge
from paged_kernels.triton_backend.schedule import Batch, Schedule, schedule
from paged_kernels.triton_backend.tiles import Geometry, Tile


class Capacity(NamedTuple):
    """What a plan that is refilled has room for: `rows` sequences of one query row each."""

    rows: int
    max_context: int
    programs: int  # of each launch, times the KV heads


class _Launch(NamedTuple):
    tile: Tile
    items: torch.Tensor  # [room for items, 8] int32
    count: torch.Tensor  # [1] int32: items in use
    programs: int        # times the KV heads: as many as items, or what the capacity says


class _Loaded(NamedTuple):
    """A schedule on the device."""

    launches: list[_Launch]
    part_starts: torch.Tensor
    part_rows: torch.Tensor
    num_parts: int


class TritonPlan:
    """Arguments as in `paged_kernels.attention`; context_lens and query_start_loc on the host."""

    def __init__(
        self, block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int,
        shared_prefix_len: int = 0, *, capacity: Capacity | None = None,
    ) -> None:
        self.device = block_tables.device
        check_device(self.device)
        self._capacity = capacity
        self._batch = Batch(context_lens.numpy(), query_start_loc.numpy(), shared_prefix_len)
        self._tables = block_tables.to(torch.int32).contiguous()
        self._positions = self._to_device(self._batch.positions())
        self._loaded: dict[tuple[Geometry, int | None], _Loaded] = {}

    def whole_layers(self, num_weights: int) -> None:
        """There are none: CUDA graphs save the calls."""

    def describe(self) -> str:
        """What runs where."""
        return f"{len(self._batch.contexts)} sequences in triton on {describe_device(self.device)}"

    def run(
        self, query: torch.Tensor, cache: KVCache, scoring: Scoring, *, with_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `paged_kernels.attention.BackendPlan`."""
        geometry = geometry_of(query, cache, self._batch.num_rows)
        loaded = self._loaded.get((geometry, scoring.window))
        if loaded is None:
            loaded = self._loaded[geometry, scoring.window] = self._load(self._schedule(geometry, scoring.window))
        heads = query.shape[1]
        out = query.new_empty(len(query), heads, geometry.value_dim)
        lse = query.new_empty(len(query), heads, dtype=torch.float32) if with_lse else None
        parts = Parts(query.new_empty(loaded.num_parts, heads, geometry.value_dim, dtype=torch.float32),
                      query.new_empty(loaded.num_parts, heads, dtype=torch.float32))
        for launch in loaded.launches:
            launch_attend(launch.tile, geometry, scoring, query, cache, self._tables, self._positions, launch.items,
                          launch.count, launch.programs, out, lse, parts)
        if loaded.num_parts:
            launch_merge(parts, loaded.part_starts, loaded.part_rows, out, lse)
        return out, lse

    def refill(self, block_tables: torch.Tensor, context_lens: torch.Tensor) -> None:
        """The next batch of a plan with a capacity: as many sequences, a query row each, tables as wide."""
        if self._capacity is None:
            raise ValueError("only a plan with a capacity can be refilled")
        self._batch = self._batch._replace(contexts=context_lens.numpy())
        self._tables.copy_(block_tables)
        self._positions.copy_(torch.from_numpy(self._batch.positions().astype(np.int32)))
        for (geometry, window), loaded in self._loaded.items():
            self._store(loaded, self._schedule(geometry, window))

    def _schedule(self, geometry: Geometry, window: int | None) -> Schedule:
        return schedule(self._batch, geometry, window, target=target_of(self.device))

    def _load(self, work: Schedule) -> _Loaded:
        """On the device, with room for the capacity."""
        if self._capacity is None:
            launches = [
                _Launch(tile, self._to_device(items), self._to_device(np.array([len(items)])), len(items))
                for tile, items in work.launches
            ]
            return _Loaded(launches, self._to_device(work.part_starts), self._to_device(work.part_rows), work.num_parts)
        (tile, _), = work.launches
        room = self._capacity.rows * -(-self._capacity.max_context // tile.split)
        sizes = ((room, 8), (1,), (self._capacity.rows + 1,), (room,))
        with torch.inference_mode(False):  # what a forward pass makes cannot be refilled outside of one
            items, count, part_starts, part_rows = (
                torch.zeros(size, dtype=torch.int32, device=self.device) for size in sizes)
        loaded = _Loaded([_Launch(tile, items, count, self._capacity.programs)], part_starts, part_rows, room)
        self._store(loaded, work)
        return loaded

    def _store(self, loaded: _Loaded, work: Schedule) -> None:
        (_, items), = work.launches
        launch = loaded.launches[0]
        for target, array in ((launch.items, items), (launch.count, np.array([len(items)])),
                              (loaded.part_starts, work.part_starts), (loaded.part_rows, work.part_rows)):
            target[: len(array)].copy_(torch.from_numpy(array.astype(np.int32)))

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int32)).to(self.device)

