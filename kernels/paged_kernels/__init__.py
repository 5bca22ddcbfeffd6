"""Paged attention behind one seam: plan a batch once, attend once a layer. See `paged_kernels.attention`."""

from paged_kernels.attention import BACKENDS, AttentionPlan, paged_attention, plan_attention, write_kv

__all__ = ["BACKENDS", "AttentionPlan", "paged_attention", "plan_attention", "write_kv"]
