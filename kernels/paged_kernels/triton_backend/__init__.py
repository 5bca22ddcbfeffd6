"""Attention, cache write and block copy in Triton. `plan.TritonPlan` is the way in."""
