"""What an allocator is asked for while sequences come, grow and go: the same for every allocator that is timed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reference_engine.memory.allocator import blocks_for

ALLOCATE, APPEND, FREE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class AllocatorTrace:
    """`ops` are (what, sequence). An APPEND is one token. The last token generated is never fed back: no slot for it.

    `tokens[i]` is the text of sequence i, of which the first `prompt_tokens[i]` are allocated at once.
    """

    block_size: int
    num_blocks: int  # enough for all operations, and no more than a tenth above it
    tokens: list[list[int]]
    prompt_tokens: list[int]
    ops: list[tuple[int, int]]

    @property
    def total_blocks(self) -> int:
        """Blocks in all tables together, however they came there."""
        return sum(blocks_for(len(tokens), self.block_size) for tokens in self.tokens)

    @property
    def block_ops(self) -> list[tuple[int, int]]:
        """The operations without the appends that stay in a block."""
        held: dict[int, int] = {}
        kept = []
        for what, i in self.ops:
            if what == ALLOCATE:
                held[i] = self.prompt_tokens[i]
            elif what == APPEND:
                held[i] += 1
                if held[i] % self.block_size != 1 % self.block_size:
                    continue
            kept.append((what, i))
        return kept


def draw_trace(
    num_sequences: int, num_running: int, seed: int, *, block_size: int = 16, shared_tokens: int = 256
) -> AllocatorTrace:
    """ShareGPT-like lengths (see workloads/sharegpt-like.toml), `num_running` sequences at once, a token each in turn.

    Half of the prompts begin with one of four texts of `shared_tokens`, so that a prefix cache has hits.
    """
    rng = np.random.default_rng(seed)
    prompts = np.clip(np.rint(rng.gamma(0.25, 161 / 0.25, num_sequences)), 5, 1536).astype(int)
    outputs = np.clip(np.rint(rng.exponential(338, num_sequences)), 1, 2048 - 1536).astype(int)
    shared = rng.integers(0, 32_000, (4, shared_tokens)).tolist()
    tokens, prompt_tokens = [], []
    for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True):
        begin = shared[int(rng.integers(4))] if rng.random() < 0.5 else []
        prompt_tokens.append(len(begin) + prompt)
        tokens.append(begin + rng.integers(0, 32_000, prompt + output - 1).tolist())
    ops, peak = _play(tokens, prompt_tokens, num_running, block_size)
    return AllocatorTrace(block_size, peak + peak // 10, tokens, prompt_tokens, ops)


def _play(
    tokens: list[list[int]], prompt_tokens: list[int], num_running: int, block_size: int
) -> tuple[list[tuple[int, int]], int]:
    """The operations, and the most blocks that are held at once without sharing."""
    ops: list[tuple[int, int]] = []
    held: dict[int, int] = {}
    waiting, peak = iter(range(len(tokens))), 0
    while True:
        for i in list(held):
            if held[i] < len(tokens[i]):
                ops.append((APPEND, i))
                held[i] += 1
            else:
                ops.append((FREE, i))
                del held[i]
        while len(held) < num_running and (i := next(waiting, -1)) >= 0:
            ops.append((ALLOCATE, i))
            held[i] = prompt_tokens[i]
        if not held:
            return ops, peak
        peak = max(peak, sum(blocks_for(count, block_size) for count in held.values()))
