"""From a scheduled step to tensors, through the model, to logits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from paged_kernels import plan_attention

from reference_engine.memory.allocator import Allocator, blocks_for
from reference_engine.memory.pool import KVPool
from reference_engine.model.transformer import LlamaModel, StepInput
from reference_engine.scheduling.scheduler import Step


class Runner:
    """One forward pass a step over all its sequences."""

    def __init__(self, model: LlamaModel, pool: KVPool, allocator: Allocator, *, backend: str = "torch") -> None:
        self.model, self.pool, self.allocator, self.backend = model, pool, allocator, backend

    def run(self, step: Step) -> torch.Tensor:
        """Logits [n, vocab_size] float32 of the n sequences whose last token is in the step, in the step's order."""
        self.pool.copy_blocks(step.copies)
        return self.model.forward(self.prepare(step), self.pool.tensor)

    def prepare(self, step: Step) -> StepInput:
        """The step's batch as tensors."""
        block_size = self.allocator.block_size
        starts = np.array([seq.num_computed for seq in step.sequences], dtype=np.int64)
        counts = np.array(step.num_new, dtype=np.int64)
        contexts = starts + counts
        query_start_loc = np.concatenate([[0], counts.cumsum()])
        tables = np.zeros((len(starts), blocks_for(int(contexts.max()), block_size)), dtype=np.int64)
        token_ids: list[int] = []
        logit_rows = []
        for i, (seq, context) in enumerate(zip(step.sequences, contexts.tolist(), strict=True)):
            used = blocks_for(context, block_size)
            tables[i, :used] = self.allocator.block_table(seq.id)[:used]
            if step.num_new[i] == 1:
                token_ids.append(seq.tokens[seq.num_computed])
            else:
                token_ids += seq.tokens[seq.num_computed : context]
            if context == len(seq.tokens):
                logit_rows.append(query_start_loc[i + 1] - 1)
        owner = np.repeat(np.arange(len(starts)), counts)  # which sequence each token belongs to
        positions = starts[owner] + np.arange(len(owner)) - query_start_loc[owner]
        slots = tables[owner, positions // block_size] * block_size + positions % block_size
        plan = plan_attention(
            self._tensor(tables), self._tensor(contexts), self._tensor(query_start_loc), block_size,
            backend=self.backend,
        )
        return StepInput(
            self._tensor(np.array(token_ids, dtype=np.int64)), self._tensor(positions), self._tensor(slots),
            self._tensor(np.array(logit_rows, dtype=np.int64)), plan,
        )

    def _tensor(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.model.device)
