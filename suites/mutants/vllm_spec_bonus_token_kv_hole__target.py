"""When all guesses are right, the last of them counts as computed before it is: its slot stays as it was."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from reference_engine.engine import Engine, StepOutput
from reference_engine.scheduling.sequence import Sequence, Status

BUG = "vllm-spec-bonus-token-kv-hole"
MUST_FAIL = ("http/spec-decode-exact",)
ENGINE_ARGS = ("--speculation", "ngram")


def apply() -> None:
    """A hole behind each round of guesses that were all accepted, here in the model's own cache."""
    sample = Engine._sample

    def sample_and_skip(
        self: Engine, logits: torch.Tensor, seqs: list[Sequence], drafts: Mapping[int, list[int]]
    ) -> list[StepOutput]:
        before = {seq.id: seq.num_tokens for seq in seqs}
        outputs = sample(self, logits, seqs, drafts)
        for seq in dict.fromkeys(seqs):
            tried = drafts.get(seq.id)
            if tried and seq.num_tokens - before[seq.id] > len(tried) and seq.status is Status.RUNNING:
                position = seq.num_computed - 1
                block = self.allocator.block_table(seq.id)[position // self.allocator.block_size]
                self.pool.tensor[:, :, block, position % self.allocator.block_size] = 0
        return outputs

    Engine._sample = sample_and_skip  # type: ignore[method-assign]
