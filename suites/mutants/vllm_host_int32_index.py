"""The index of a slot in the whole cache is computed in 32 bits."""

from __future__ import annotations

import numpy as np

from reference_engine import runner

BUG = "vllm-host-int32-index"
MUST_FAIL = ("alloc/slot-index-wide",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Block times block size, wrapped."""
    slot_mapping = runner.slot_mapping
    runner.slot_mapping = lambda *given: slot_mapping(*given).astype(np.int32).astype(np.int64)
