"""The engine's own switches, checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pabench.errors import UsageError
from reference_engine.memory.buddy import chunk_blocks

DTYPES = ("float32", "bfloat16", "float16")  # of weights and activations, as torch calls them

# Every switch that chooses one of several mechanisms, with what it may be; the first is the default.
CHOICES = {
    "kv": ("paged", "contiguous"),
    "reservation": ("max", "pow2", "oracle"),
    "kv_dtype": ("auto", "float32", "bfloat16", "float16", "int8", "fp8"),
    "weight_dtype": ("auto", "int8"),
    "attention_backend": ("auto", "torch", "numba", "triton"),
    "preemption": ("recompute", "swap", "wait"),
    "policy": ("fcfs", "priority"),
    "batching": ("continuous", "static"),
    "speculation": ("off", "ngram", "draft"),
}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's switches. Lengths in tokens; `max_model_len` bounds prompt plus output of one sequence."""

    max_model_len: int
    kv: str = "paged"
    reservation: str = "max"         # what a contiguous cache reserves for a sequence
    block_size: int = 16
    num_blocks: int = 2048
    kv_dtype: str = "auto"           # of keys and values; auto: the model's
    weight_dtype: str = "auto"
    attention_backend: str = "auto"  # of paged_kernels; auto: numba on a CPU, triton on cuda, else torch
    enforce_eager: bool = False      # no CUDA graphs on a GPU, no layers compiled whole on a CPU
    prefix_caching: bool = True      # of a paged cache; a contiguous one shares nothing
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True     # prompts in pieces beside decodes; otherwise whole, in steps of their own
    batching: str = "continuous"     # static: a batch is let in when the one before has ended
    policy: str = "fcfs"
    preemption: str = "recompute"    # what happens to a sequence when blocks run out
    num_swap_blocks: int = 2048      # host blocks, for preemption by swapping
    speculation: str = "off"
    num_speculative_tokens: int = 4
    draft_model: Path | None = None
    check_integrity: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected at least 1"
            for name in ("max_model_len", "block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens",
                         "num_swap_blocks", "num_speculative_tokens")
            if getattr(self, name) < 1
        ]
        problems += [
            f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}"
            for name, choices in CHOICES.items() if getattr(self, name) not in choices
        ]
        if problems := problems or self._contradictions():
            raise UsageError("; ".join(problems))

    def _contradictions(self) -> list[str]:
        found = []
        if self.max_num_batched_tokens < self.max_num_seqs:
            found.append(f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs "
                         f"{self.max_num_seqs}: a step must hold one token of each sequence")
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            found.append(f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_model_len "
                         f"{self.max_model_len}: without chunked prefill a step must hold the longest prompt")
        chunk = chunk_blocks(self.blocks_per_reservation)
        if self.kv == "contiguous" and self.reservation == "max" and chunk > self.num_blocks:
            found.append(f"{self.num_blocks} blocks of {self.block_size} hold no reservation of max_model_len "
                         f"{self.max_model_len} tokens, a chunk of {chunk} blocks: raise --num-blocks or lower "
                         "--max-model-len")
        if (self.speculation == "draft") != (self.draft_model is not None):
            found.append(f"speculation is {self.speculation!r} and the draft model is {self.draft_model}: "
                         "\"draft\" needs a model, and nothing else does")
        return found

    @property
    def blocks_per_reservation(self) -> int:
        """Blocks that hold a sequence of the maximum length."""
        return -(-self.max_model_len // self.block_size)

    @property
    def caches_prefixes(self) -> bool:
        """Whether computed blocks can be found again."""
        return self.prefix_caching and self.kv == "paged"

    @property
    def lookahead(self) -> int:
        """Draft tokens that a step may try for a sequence."""
        return 0 if self.speculation == "off" else self.num_speculative_tokens
