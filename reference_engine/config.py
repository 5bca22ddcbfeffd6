"""The engine's own switches, checked at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pabench.errors import UsageError

KV_MODES = ("paged", "contiguous")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's switches. Lengths in tokens; `max_model_len` bounds prompt plus output of one sequence."""

    max_model_len: int
    kv: str = "paged"
    block_size: int = 16
    num_blocks: int = 2048
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    check_integrity: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected at least 1"
            for name in ("max_model_len", "block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens")
            if getattr(self, name) < 1
        ]
        if self.kv not in KV_MODES:
            problems.append(f"kv is {self.kv!r}, expected one of {', '.join(KV_MODES)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            problems.append(f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs "
                            f"{self.max_num_seqs}: a step must hold one token of each sequence")
        if not problems and self.kv == "contiguous" and self.blocks_per_reservation > self.num_blocks:
            problems.append(f"{self.num_blocks} blocks of {self.block_size} hold no reservation of max_model_len "
                            f"{self.max_model_len} tokens: raise --num-blocks or lower --max-model-len")
        if problems:
            raise UsageError("; ".join(problems))

    @property
    def blocks_per_reservation(self) -> int:
        """Blocks that hold a sequence of the maximum length."""
        return -(-self.max_model_len // self.block_size)
