"""One vocabulary of KV cache quantities for all engines. What an engine does not tell is None, never zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = "–"  # how a quantity is shown that an engine does not tell
NOT_APPLICABLE = "n/a"  # and one that it cannot have, by the way it works

@dataclass(frozen=True, slots=True)
class MetricSample:
    """One line of an exposition: labels and value."""

    name: str
    labels: Mapping[str, str]
    value: float


# Metric name (with `_total` where the exposition has it) -> its samples.
MetricFamilies = Mapping[str, Sequence[MetricSample]]


@dataclass(frozen=True, slots=True)
class KVFacts:
    """Geometry of the KV cache. `num_blocks` counts blocks that requests can use. What is below 1 is not known."""

    block_size: int | None = None        # tokens
    num_blocks: int | None = None
    prefix_caching: bool | None = None
    kv_mode: str | None = None           # "paged" | "contiguous" where told

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks"):
            value: int | None = getattr(self, name)
            if value is not None and value < 1:
                object.__setattr__(self, name, None)

    @property
    def capacity_tokens(self) -> int | None:
        """Slots in the pool; None where unknown."""
        if self.block_size is None or self.num_blocks is None:
            return None
        return self.block_size * self.num_blocks


@dataclass(frozen=True, slots=True)
class KVSample:
    """State of the KV cache at one moment. Counters are cumulative since the engine started."""

    time_s: float
    kv_usage: float | None = None         # fraction of the blocks that requests hold, evictable cache left out, 0..1
    kv_cached: float | None = None        # fraction that is evictable cache, 0..1
    running: float | None = None          # requests
    waiting: float | None = None
    preemptions: float | None = None      # counter
    prefix_queries: float | None = None   # counter, tokens
    prefix_hits: float | None = None      # counter, tokens
    drafted: float | None = None          # counter, tokens guessed by speculation
    accepted: float | None = None         # counter, those of them that were right
    swapped: float | None = None          # blocks now swapped out
    # The exact split of the vLLM paper (its Fig. 2), where the engine tells it; all in slots (tokens).
    token_states_tokens: float | None = None
    reserved_tokens: float | None = None
    internal_waste_tokens: float | None = None
    external_waste_tokens: float | None = None


COUNTERS = ("preemptions", "prefix_queries", "prefix_hits", "drafted", "accepted")  # those fields of `KVSample`
