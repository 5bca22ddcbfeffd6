"""A chunk of a prompt attends as far as the whole prompt is long, into slots that nobody has written yet."""

from __future__ import annotations

from typing import Any

import torch

from reference_engine import runner
from reference_engine.runner import Runner

BUG = "nanovllm-seqlen-k-past-chunk"
MUST_FAIL = ("http/chunk-boundary-exact",)
ENGINE_ARGS = ("--max-num-batched-tokens", "64", "--num-blocks", "64")


def apply() -> None:
    """The length of the prompt in place of the end of the chunk."""
    make, plan_attention = Runner.batch, runner.plan_attention
    now: list[Any] = []

    def batch_and_note(self: Runner, seqs: Any, *rest: Any) -> Any:
        now[:] = [self.allocator, seqs]
        return make(self, seqs, *rest)

    def plan_past_chunk(tables: torch.Tensor, contexts: torch.Tensor, *more: Any, **named: Any) -> Any:
        allocator, seqs = now
        whole = torch.tensor([max(seq.num_tokens, int(n)) for seq, n in zip(seqs, contexts, strict=True)])
        rows = [torch.tensor(list(allocator.block_table(seq.id))) for seq in seqs]
        return plan_attention(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), whole, *more, **named)

    Runner.batch = batch_and_note  # type: ignore[method-assign]
    runner.plan_attention = plan_past_chunk
