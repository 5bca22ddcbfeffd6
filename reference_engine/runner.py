"""From a scheduled step to tensors, through the model, to logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from paged_kernels import WholeLayer, elementwise, move_backend, plan_attention, warm_up

from pabench.errors import UsageError
from reference_engine.config import EngineConfig
from reference_engine.graphs import DecodeGraphs, cuda_graph
from reference_engine.memory.allocator import Allocator, BlockCopy, blocks_for
from reference_engine.memory.pool import KVPool, kv_dtype
from reference_engine.model.transformer import StepInput, Transformer
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

_BACKENDS = {"cpu": "numba", "cuda": "triton"}  # what "auto" means on these types of device; "torch" on any other


def attention_backend(name: str, device: torch.device) -> str:
    """The backend of paged_kernels that `name`, "auto" too, means on this device. Raises UsageError for a bad pair."""
    if name == "numba" and device.type != "cpu":
        raise UsageError(f"attention backend 'numba' runs on a CPU, the device is {device}: choose triton or auto")
    if name == "triton":
        from paged_kernels.triton_backend.device import check_device  # triton is heavy

        try:
            check_device(device)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return _BACKENDS.get(device.type, "torch") if name == "auto" else name


class Batch(NamedTuple):
    """What one forward pass computes, on the host. n tokens of s sequences."""

    token_ids: NDArray[np.int64]        # [n]
    positions: NDArray[np.int64]        # [n]
    slots: NDArray[np.int64]            # [n]
    tables: NDArray[np.int64]           # [s, blocks]
    contexts: NDArray[np.int64]         # [s]
    query_start_loc: NDArray[np.int64]  # [s + 1]
    logit_rows: NDArray[np.int64]       # the rows whose next token is wanted

    @property
    def is_decode(self) -> bool:
        """One token and one row of logits a sequence."""
        return len(self.token_ids) == len(self.contexts) == len(self.logit_rows)


class Runner:
    """One forward pass a step over all its sequences. `host_pool` is where swapped blocks lie."""

    def __init__(
        self, model: Transformer, pool: KVPool, allocator: Allocator, *, host_pool: KVPool | None = None,
        backend: str, whole: SequenceOf[WholeLayer] = (), graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model, self.pool, self.host_pool, self.allocator = model, pool, host_pool, allocator
        self.backend, self.whole, self.graphs = backend, whole, graphs
        model.ops = elementwise("numba" if backend == "numba" else "torch")

    @classmethod
    def build(cls, model: Transformer, config: EngineConfig, allocator: Allocator) -> Runner:
        """With a new KV pool, and one in host memory if the config swaps. Compiles what the attention backend needs."""
        backend = attention_backend(config.attention_backend, model.device)
        dtype = kv_dtype(config.kv_dtype, model.dtype)
        copies = move_backend(backend)
        pool = KVPool(model.config, config.num_blocks, config.block_size, dtype, model.device, copies)
        host_pool = None
        if config.preemption == "swap":
            host = torch.device("cpu")
            host_pool = KVPool(model.config, config.num_swap_blocks, config.block_size, dtype, host, copies)
        whole = [] if backend != "numba" or config.enforce_eager else model.whole_layers(pool.layers)
        warm_up(dtype, model.dtype, backend=backend, whole=whole)
        runner = cls(model, pool, allocator, host_pool=host_pool, backend=backend, whole=whole)
        if backend == "triton" and model.device.type == "cuda":
            runner.rehearse(config.max_model_len)
            if not config.enforce_eager:
                capture = partial(cuda_graph, pool=torch.cuda.graph_pool_handle())
                runner.graphs = DecodeGraphs(model, pool.layers, config, capture)
                runner.graphs.capture_all()
        return runner

    def rehearse(self, longest: int) -> None:
        """Compile what sequences of up to `longest` tokens need of the Triton backend; the first would wait for it.

        One pass reads the first block alone, whatever lies there, and writes nothing.
        """
        from paged_kernels.triton_backend.tiles import ROWS_OF_EACH_TILE  # triton is heavy

        counts = np.array([rows for rows in ROWS_OF_EACH_TILE if rows <= longest], dtype=np.int64)
        contexts, ends = np.full_like(counts, longest), counts.cumsum()
        positions = np.concatenate([np.arange(longest - rows, longest) for rows in counts])
        tables = np.zeros((len(counts), blocks_for(longest, self.allocator.block_size)), dtype=np.int64)
        batch = Batch(np.zeros_like(positions), positions, np.full_like(positions, -1), tables, contexts,
                      np.concatenate([[0], ends]), ends - 1)
        self.model.forward(self.prepare(batch), self.pool.layers)
        self.pool.copy_blocks([BlockCopy(0, 0)])

    def run(self, step: Step, num_logits: SequenceOf[int]) -> torch.Tensor:
        """Logits [sum(num_logits), vocab_size] float32: of each sequence those of its last num_logits[i] new tokens."""
        self.move(step)
        texts = [
            seq.tokens[seq.num_computed : seq.num_computed + num_new] + step.drafts.get(seq.id, [])
            for seq, num_new in zip(step.sequences, step.num_new, strict=True)
        ]
        images = images_in(step.sequences, texts)
        return self.compute(step.sequences, [seq.num_computed for seq in step.sequences], texts, num_logits, images)

    def compute(
        self, seqs: SequenceOf[Sequence], starts: SequenceOf[int], texts: SequenceOf[list[int]],
        num_logits: SequenceOf[int], images: SequenceOf[tuple[int, torch.Tensor]] = (),
    ) -> torch.Tensor:
        """Logits, as `run` gives them, of one pass over the tokens texts[i] from position starts[i] of seqs[i] on.

        images: embeddings in place of those of tokens, and the row of the batch that they begin at.
        """
        batch = self.batch(seqs, starts, texts, num_logits)
        if self.graphs is not None and batch.is_decode and not images:
            return self.graphs.run(batch)
        return self.model.forward(self.prepare(batch, images), self.pool.layers, self.whole)

    def move(self, step: Step) -> None:
        """Do the step's copies."""
        for kind, copies in step.moves:
            if kind == "copy":
                self.pool.copy_blocks(copies)
            elif self.host_pool is None:
                raise RuntimeError(f"a step moves blocks ({kind}), but there is no host memory to swap with")
            elif kind == "out":
                self.host_pool.copy_from(self.pool, copies)
            else:
                self.pool.copy_from(self.host_pool, copies)

    def batch(
        self, seqs: SequenceOf[Sequence], starts: SequenceOf[int], texts: SequenceOf[list[int]],
        num_logits: SequenceOf[int],
    ) -> Batch:
        """What `compute` computes."""
        block_size = self.allocator.block_size
        first = np.array(starts, dtype=np.int64)
        counts = np.array([len(text) for text in texts], dtype=np.int64)
        contexts = first + counts
        query_start_loc = np.concatenate([[0], counts.cumsum()])
        tables = np.zeros((len(seqs), blocks_for(int(contexts.max()), block_size)), dtype=np.int64)
        for i, (seq, context) in enumerate(zip(seqs, contexts.tolist(), strict=True)):
            used = blocks_for(context, block_size)
            tables[i, :used] = self.allocator.block_table(seq.id)[:used]
        token_ids = np.fromiter(itertools.chain.from_iterable(texts), dtype=np.int64, count=int(query_start_loc[-1]))
        owner = np.repeat(np.arange(len(seqs)), counts)  # which sequence each token belongs to
        positions = first[owner] + np.arange(len(owner)) - query_start_loc[owner]
        slots = slot_mapping(tables, owner, positions, block_size)
        return Batch(token_ids, positions, slots, tables, contexts, query_start_loc,
                     _last_rows(query_start_loc[1:], num_logits))

    def prepare(self, batch: Batch, images: SequenceOf[tuple[int, torch.Tensor]] = ()) -> StepInput:
        """The batch as tensors on the device."""
        plan = plan_attention(
            self._tensor(batch.tables), torch.from_numpy(batch.contexts), torch.from_numpy(batch.query_start_loc),
            self.allocator.block_size, backend=self.backend,
        )
        token_ids, positions, slots, rows = (
            self._tensor(array) for array in (batch.token_ids, batch.positions, batch.slots, batch.logit_rows))
        return StepInput(token_ids, positions, slots, rows, plan, images)

    def _tensor(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.model.device)


def images_in(seqs: SequenceOf[Sequence], texts: SequenceOf[list[int]]) -> list[tuple[int, torch.Tensor]]:
    """What each sequence's next tokens, texts[i], hold of its images: (row of the batch, embeddings from there on)."""
    found, row = [], 0
    for seq, text in zip(seqs, texts, strict=True):
        first, end = seq.num_computed, seq.num_computed + len(text)
        for image in seq.request.images:
            start, stop = max(image.start, first), min(image.end, end)
            if start < stop:
                found.append((row + start - first, image.embeddings[start - image.start : stop - image.start]))
        row += len(text)
    return found


def slot_mapping(
    tables: NDArray[np.int64], owner: NDArray[np.int64], positions: NDArray[np.int64], block_size: int
) -> NDArray[np.int64]:
    """[num_tokens] The slot of each token in the whole pool: of position positions[i] of row owner[i] of `tables`."""
    slots: NDArray[np.int64] = tables[owner, positions // block_size] * block_size + positions % block_size
    return slots


def _last_rows(ends: NDArray[np.int64], counts: SequenceOf[int]) -> NDArray[np.int64]:
    """Rows [end - count, end) of each sequence, one after another."""
    wanted = np.asarray(counts, dtype=np.int64)
    first = np.repeat(ends - wanted.cumsum(), wanted)
    return first + np.arange(len(first))
