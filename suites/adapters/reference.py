"""The reference engine's allocators, and its scheduler with them, as adapters of the allocator level.

They keep what the engine's scheduler keeps: the tokens of each sequence, and with them the keys of its blocks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from pabench import __version__
from pabench.conformance.alloc import Copies, Pool
from pabench.conformance.alloc.schedule import Limits, Plan, Planned
from reference_engine import runner
from reference_engine.config import EngineConfig
from reference_engine.memory import prefix_cache
from reference_engine.memory.allocator import HOLE, Allocator
from reference_engine.memory.buddy import chunk_blocks
from reference_engine.memory.build import build_allocator
from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.swap import SwapSpace
from reference_engine.scheduling import scheduler
from reference_engine.scheduling import sequence as sequences
from reference_engine.scheduling.step import Step


class ReferenceScheduler:
    """See SchedulerAdapter. Each request is one sequence."""

    def __init__(self, pool: Pool, limits: Limits, *, kv: str) -> None:
        config = EngineConfig(
            max_model_len=pool.max_tokens, kv=kv, block_size=pool.block_size, num_blocks=pool.num_blocks,
            prefix_caching=pool.caching, max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens)
        self._scheduler = scheduler.Scheduler(config, build_allocator(config))
        self._requests: dict[int, sequences.Sequence] = {}
        self._step = Step()

    def add(self, request: int, prompt: Sequence[int], output_tokens: int) -> str | None:
        """See SchedulerAdapter."""
        refusal = self._scheduler.reason_never_to_fit(len(prompt), output_tokens, 1)
        if refusal is None:
            params = sequences.SamplingParams(max_tokens=output_tokens)
            queued = sequences.Request(tuple(prompt), params, seed=0, arrival_s=time.monotonic(), id=request)
            self._requests[request] = sequences.Sequence(queued, 0, list(prompt), seed=0)
            queued.sequences.append(self._requests[request])
            self._scheduler.add(queued)
        return refusal

    def abort(self, request: int) -> None:
        """See SchedulerAdapter."""
        self._scheduler.finish(self._requests.pop(request))

    def schedule(self) -> Plan:
        """See SchedulerAdapter."""
        before = list(self._scheduler.running)
        self._step = self._scheduler.schedule()
        waiting = set(self._scheduler.waiting)
        table = self._scheduler.allocator.block_table
        return Plan([
            Planned(seq.request.id, seq.num_computed, num_new,
                    [None if block == HOLE else block for block in table(seq.id)])
            for seq, num_new in zip(self._step.sequences, self._step.num_new, strict=True)
        ], [seq.request.id for seq in before if seq in waiting])

    def complete(self, tokens: Mapping[int, int]) -> None:
        """See SchedulerAdapter."""
        self._scheduler.complete(self._step)
        for request, token in tokens.items():
            seq = self._requests[request]
            seq.append(token)
            if seq.num_output_tokens == seq.request.params.max_tokens:
                self._scheduler.finish(self._requests.pop(request))


class ReferenceAllocator:
    """What paged and contiguous have in common: they fulfil one protocol."""

    capabilities = frozenset({"fork", "cost", "admission", "truncate", "slots", "swap", "scheduler"})
    kind = kv = ""

    def __init__(self) -> None:
        self._allocator: Allocator
        self._pool: Pool
        self._swap: SwapSpace
        self._away: set[int] = set()  # sequences in host memory
        self._texts: dict[int, tuple[list[int], bytes]] = {}  # tokens, and the key that their chain begins with

    def _begin(self, pool: Pool, allocator: Allocator) -> None:
        self._pool, self._allocator, self._texts = pool, allocator, {}
        self._swap, self._away = SwapSpace(pool.host_blocks, allocator), set()

    def describe(self) -> str:
        """See AllocatorAdapter."""
        return f"reference engine {__version__}, {self.kind}"

    def _keys(self, seq: int, num_tokens: int) -> list[bytes]:
        tokens, root = self._texts[seq]
        keys: list[bytes] = []
        prefix_cache.extend_keys(keys, root, tokens, num_tokens, self._pool.block_size)
        return keys

    def allocate(self, seq: int, tokens: Sequence[int], extra: Sequence[str] = ()) -> int | None:
        """See AllocatorAdapter."""
        self._texts[seq] = (list(tokens), prefix_cache.root_key(*extra))
        keys = self._keys(seq, len(tokens)) if self._pool.caching else []
        return self._allocator.allocate(seq, len(tokens), self._pool.max_tokens, keys)

    def cost(self, operation: str, seq: int, tokens: Sequence[int], extra: Sequence[str] = ()) -> int | None:
        """See AllocatorAdapter."""
        if operation == "append":
            return self._allocator.cost_of_growth(seq, len(tokens))
        keys: list[bytes] = []
        if self._pool.caching:
            root = prefix_cache.root_key(*extra)
            prefix_cache.extend_keys(keys, root, tokens, len(tokens), self._pool.block_size)
        return self._allocator.cost_of_new(len(tokens), self._pool.max_tokens, keys)

    def append(self, seq: int, tokens: Sequence[int]) -> Copies | None:
        """See AllocatorAdapter."""
        copies = self._allocator.append(seq, len(tokens))
        if copies is not None:
            self._texts[seq][0].extend(tokens)
        return copies

    def fork(self, parent: int, child: int) -> Copies | None:
        """See AllocatorAdapter."""
        copies = self._allocator.fork(parent, child)
        if copies is not None:
            tokens, root = self._texts[parent]
            self._texts[child] = (list(tokens), root)
        return copies

    def truncate(self, seq: int, num_tokens: int) -> None:
        """See AllocatorAdapter."""
        self._allocator.truncate(seq, num_tokens)
        del self._texts[seq][0][num_tokens:]

    def free(self, seq: int) -> None:
        """See AllocatorAdapter."""
        if seq in self._away:
            self._away.remove(seq)
            self._swap.discard(seq)
        else:
            self._allocator.free(seq)

    def block_table(self, seq: int) -> list[int | None]:
        """See AllocatorAdapter."""
        return [None if block == HOLE else block for block in self._allocator.block_table(seq)]

    def num_free_blocks(self) -> int:
        """See AllocatorAdapter."""
        return self._allocator.num_free_blocks

    def swap_out(self, seq: int, num_computed: int) -> Copies | None:
        """See AllocatorAdapter."""
        copies = self._swap.swap_out(seq, num_computed)
        if copies is not None:
            self._away.add(seq)
        return copies

    def swap_in(self, seq: int) -> tuple[int, Copies] | None:
        """See AllocatorAdapter."""
        num_tokens = len(self._texts[seq][0])
        keys = self._keys(seq, num_tokens) if self._pool.caching else []
        back = self._swap.swap_in(seq, num_tokens, self._pool.max_tokens, keys)
        if back is not None:
            self._away.remove(seq)
        return back

    def slots(self, seq: int, start: int, stop: int) -> list[int]:
        """See AllocatorAdapter."""
        tables = np.array([self._allocator.block_table(seq)], dtype=np.int64)
        positions = np.arange(start, stop)
        return runner.slot_mapping(tables, np.zeros_like(positions), positions, self._pool.block_size).tolist()

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """See AllocatorAdapter."""
        return self._allocator.can_ever_hold(prompt_tokens, final_tokens, n)

    def scheduler(self, pool: Pool, limits: Limits) -> ReferenceScheduler:
        """The engine's own, with an allocator of this kind."""
        return ReferenceScheduler(pool, limits, kv=self.kv)


class Paged(ReferenceAllocator):
    """PagedAllocator."""

    capabilities = ReferenceAllocator.capabilities | {
        "sharing", "paged", "prefix_cache", "extra_keys", "block_keys", "window"}
    kind, kv = "PagedAllocator", "paged"

    def unsupported(self, case: Pool) -> list[str]:
        """See AllocatorAdapter."""
        return []

    def reset(self, pool: Pool) -> None:
        """See AllocatorAdapter."""
        self._begin(pool, PagedAllocator(pool.num_blocks, pool.block_size, prefix_caching=pool.caching))

    def computed(self, seq: int, num_tokens: int) -> None:
        """See AllocatorAdapter."""
        if self._pool.caching:
            self._allocator.publish(seq, self._keys(seq, num_tokens))

    def slide(self, seq: int, position: int) -> None:
        """See AllocatorAdapter."""
        self._allocator.slide(seq, position)

    def block_keys(self, pool: Pool, tokens: Sequence[int], extra: Sequence[str]) -> list[bytes]:
        """See AllocatorAdapter."""
        keys: list[bytes] = []
        prefix_cache.extend_keys(keys, prefix_cache.root_key(*extra), list(tokens), len(tokens), pool.block_size)
        return keys


class Contiguous(ReferenceAllocator):
    """ContiguousAllocator, which reserves what a sequence may need in the end."""

    kind, kv = "ContiguousAllocator (reservation max)", "contiguous"

    def unsupported(self, case: Pool) -> list[str]:
        """See AllocatorAdapter."""
        if case.caching:
            return ["a contiguous cache shares nothing, so there is nothing to be found again"]
        blocks = chunk_blocks(-(-case.max_tokens // case.block_size))
        if blocks > case.num_blocks:
            return [f"a reservation of {case.max_tokens} tokens takes {blocks} blocks, the pool has {case.num_blocks}"]
        return []

    def reset(self, pool: Pool) -> None:
        """See AllocatorAdapter."""
        self._begin(pool, ContiguousAllocator(pool.num_blocks, pool.block_size, pool.max_tokens))


def paged() -> Paged:
    """The adapter `reference-paged`."""
    return Paged()


def contiguous() -> Contiguous:
    """The adapter `reference-contiguous`."""
    return Contiguous()
