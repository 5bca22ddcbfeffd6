"""Decodes as CUDA graphs: one launch in place of some hundreds, since a small batch takes longer to launch than to run.

A graph is a forward pass with fixed addresses and grids. Each size of batch, a power of two, has one; a batch is padded
to it with rows that write to no slot, attend to nothing and are thrown away. What changes from step to step is copied
into the graph's buffers before it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from paged_kernels import AttentionPlan, KVCache

from reference_engine.config import EngineConfig
from reference_engine.model.transformer import StepInput, Transformer

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

    from reference_engine.runner import Batch

Forward = Callable[[], torch.Tensor]
_PROGRAMS_PER_CORE = 4  # of the attention kernel on each multiprocessor


def cuda_graph(forward: Forward, pool: _POOL_HANDLE | None = None) -> Forward:
    """`forward` captured: what is returned replays it, and its result stands in the same memory each time.

    Graphs of one `pool` share the memory that they compute in: a result lasts until another of them is replayed.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward()  # kernels are compiled, libraries set up: neither can be captured
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile, as those that look at images do: "global" would take it for our mistake.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = forward()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay


class DecodeGraphs:
    """The graphs of one model over one KV pool, each captured when its size is first needed, or all at once.

    `capture` makes a repeatable pass of a forward pass: `cuda_graph`, or on a CPU the pass itself.
    """

    def __init__(
        self, model: Transformer, caches: Sequence[KVCache], config: EngineConfig, capture: Callable[[Forward], Forward]
    ) -> None:
        self._model, self._caches, self._config, self._capture = model, caches, config, capture
        self._graphs: dict[int, _DecodeGraph] = {}

    def capture_all(self) -> None:
        """Those of all batches that may come: the largest first, whose memory the others then share."""
        for size in sorted({_padded_size(count) for count in range(1, self._config.max_num_seqs + 1)}, reverse=True):
            self._graph(size)

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [num_seqs, vocab_size] float32 of a batch of decodes, valid until the next run of any size."""
        return self._graph(_padded_size(len(batch.contexts))).run(batch)

    def _graph(self, size: int) -> _DecodeGraph:
        if size not in self._graphs:
            self._graphs[size] = _DecodeGraph(self._model, self._caches, self._config, size, self._capture)
        return self._graphs[size]


class _DecodeGraph:
    """One size of batch: its buffers, filled with padding, and the pass over them."""

    def __init__(
        self, model: Transformer, caches: Sequence[KVCache], config: EngineConfig, size: int,
        capture: Callable[[Forward], Forward],
    ) -> None:
        from paged_kernels.triton_backend.plan import Capacity, TritonPlan  # triton is heavy

        device = model.device
        self._tables = torch.zeros(size, config.blocks_per_reservation, dtype=torch.int64)
        self._contexts = torch.zeros(size, dtype=torch.int64)
        programs = _PROGRAMS_PER_CORE * _num_cores(device) // model.config.num_kv_heads
        capacity = Capacity(size, config.max_model_len, max(1, programs))
        self._plan = TritonPlan(self._tables.to(device), self._contexts, torch.arange(size + 1), config.block_size,
                                capacity=capacity)
        ids, positions, slots = (torch.zeros(size, dtype=torch.int64, device=device) for _ in range(3))
        self._step = StepInput(ids, positions, slots.fill_(-1), torch.arange(size, device=device),
                               AttentionPlan(self._plan, "triton"))
        with torch.cuda.device_of(ids):  # type: ignore[no-untyped-call]  # streams are the current device's
            self._replay = capture(lambda: model.forward(self._step, caches))

    def run(self, batch: Batch) -> torch.Tensor:
        """See DecodeGraphs."""
        count = len(batch.contexts)
        for buffer, values, padding in ((self._step.token_ids, batch.token_ids, 0),
                                        (self._step.positions, batch.positions, 0),
                                        (self._step.slot_mapping, batch.slots, -1)):
            buffer.copy_(torch.from_numpy(_padded(values, len(buffer), padding)))
        self._tables[:count, : batch.tables.shape[1]] = torch.from_numpy(batch.tables)
        self._contexts.copy_(torch.from_numpy(_padded(batch.contexts, len(self._contexts), 0)))
        self._plan.refill(self._tables, self._contexts)
        return self._replay()[:count]


def _padded_size(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _padded(values: NDArray[np.int64], size: int, padding: int) -> NDArray[np.int64]:
    return np.concatenate([values, np.full(size - len(values), padding, dtype=np.int64)])


def _num_cores(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
