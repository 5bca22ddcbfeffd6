"""Paged attention behind one seam: plan a batch once, attend once a layer. See `paged_kernels.attention`."""

from paged_kernels.attention import (
    BACKENDS,
    AttentionPlan,
    merge_states,
    move_backend,
    paged_attention,
    plan_attention,
    warm_up,
)
from paged_kernels.cache import SCALED_DTYPES, KVCache, copy_blocks, dequantise, quantise, write_kv
from paged_kernels.elementwise import Elementwise, elementwise
from paged_kernels.layer import Turns, WholeLayer

__all__ = [
    "BACKENDS", "SCALED_DTYPES", "AttentionPlan", "Elementwise", "KVCache", "Turns", "WholeLayer", "copy_blocks",
    "dequantise", "elementwise", "merge_states", "move_backend", "paged_attention", "plan_attention", "quantise",
    "warm_up", "write_kv",
]
