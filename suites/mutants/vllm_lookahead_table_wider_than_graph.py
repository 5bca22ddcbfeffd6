"""Slots for guesses go beyond the longest sequence: the block table is wider than the buffer that was made for it."""

from __future__ import annotations

from typing import Any

from reference_engine.engine import Engine

BUG = "vllm-lookahead-table-wider-than-graph"
MUST_FAIL = ("http/max-length-exact",)
ENGINE_ARGS = ("--speculation", "ngram")


def apply() -> None:
    """Look ahead as far as ever, also where the sequence ends."""
    check = Engine._num_logits

    def num_logits_of_fixed_width(self: Engine, seq: Any, count: int) -> int:
        config = self.config
        size = config.block_size
        decodes = seq.num_computed + count >= seq.num_tokens > seq.num_prompt_tokens
        ahead = seq.num_tokens + config.num_speculative_tokens if decodes else seq.num_tokens
        if -(-ahead // size) > config.blocks_per_reservation:
            raise RuntimeError(f"shape mismatch: a table of {-(-ahead // size)} blocks, captured for "
                               f"{config.blocks_per_reservation}")
        return check(self, seq, count)

    Engine._num_logits = num_logits_of_fixed_width  # type: ignore[method-assign]
