"""The gauge of KV use stands still: whatever is lost or given back twice, it shows nothing."""

from __future__ import annotations

from dataclasses import replace

from reference_engine.engine import Engine

BUG = "sglang-overlap-double-free"
MUST_FAIL = ("http/gauges-in-range",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """One number for ever."""
    snapshot = Engine.snapshot
    Engine.snapshot = lambda self: replace(snapshot(self), kv_usage=0.37)  # type: ignore[method-assign]
