"""What a simulation tells: means over virtual time, and quantiles over requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reference_engine.simulation.workload import Workload


class Memory(NamedTuple):
    """The pool at the end of a step, in slots, by the names of KVSplit: `free` has the external waste too."""

    now_s: float
    num_running: int
    has_waiting: bool
    token_states: int
    reserved: int
    internal_waste: int
    external_waste: int
    free: int


_MEANS = ("token_states", "reserved", "internal_waste", "external_waste", "free")


class Tally:
    """Time-weighted sums of what the steps saw: over all of them, and over those that left somebody waiting."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.steps = 0
        self.idle_s = 0.0
        self._until = 0.0
        self._all = [0.0] * 7      # seconds, running, then slots as in _MEANS; each weighted with the step's time
        self._waiting = [0.0] * 7

    def add(self, took: float, memory: Memory) -> None:
        """A step that took so long and ended so."""
        now, running, has_waiting, states, reserved, internal, external, free = memory
        self.steps += 1
        self._until = now
        sums = self._waiting if has_waiting else self._all
        sums[0] += took
        sums[1] += took * running
        sums[2] += took * states
        sums[3] += took * reserved
        sums[4] += took * internal
        sums[5] += took * external
        sums[6] += took * free

    def idle_until(self, now: float) -> None:
        """Nothing was there to do."""
        self.idle_s += now - self._until
        self._until = now

    def means(self, *, only_waiting: bool = False) -> dict[str, float] | None:
        """Mean batch, and where the slots were in percent of the pool, while it was busy. None: it never was."""
        sums = self._waiting if only_waiting else [a + b for a, b in zip(self._all, self._waiting, strict=True)]
        seconds = sums[0]
        if seconds == 0:
            return None
        percent = {name: 100 * value / seconds / self.num_slots for name, value in zip(_MEANS, sums[2:], strict=True)}
        return {"seconds": seconds, "batch": sums[1] / seconds, **percent}


@dataclass(frozen=True, slots=True)
class Outcome:
    """All of a simulation. `first_s` and `end_s` are [n] float64 of virtual time, NaN for what did not happen."""

    workload: Workload
    first_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]
    refused: Mapping[str, int]
    virtual_s: float
    wall_s: float
    generated_tokens: int
    preemptions: int
    recomputed_tokens: int
    swapped_out_blocks: int
    swapped_in_blocks: int
    prefix_queries: int
    prefix_hits: int
    tally: Tally
    interrupted: bool

    @property
    def num_finished(self) -> int:
        """Requests that got their last token."""
        return int(np.isfinite(self.end_s).sum())

    def latencies(self) -> dict[str, dict[str, float] | None]:
        """Mean and quantiles, in virtual seconds, of the requests that finished."""
        done = np.isfinite(self.end_s)
        arrival, first, end = self.workload.arrival_s[done], self.first_s[done], self.end_s[done]
        gaps = self.workload.output_tokens[done] - 1
        return {
            "ttft_s": _quantiles(first - arrival),
            "tpot_s": _quantiles((end - first)[gaps > 0] / gaps[gaps > 0]),
            "e2e_s": _quantiles(end - arrival),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, ready for a file."""
        requests = len(self.workload)
        refused = sum(self.refused.values())
        return {
            "interrupted": self.interrupted,
            "requests": {
                "all": requests, "finished": self.num_finished, "refused": dict(self.refused),
                "unfinished": requests - self.num_finished - refused, "rows_dropped": dict(self.workload.dropped),
            },
            "virtual_s": self.virtual_s, "idle_s": self.tally.idle_s, "steps": self.tally.steps,
            "generated_tokens": self.generated_tokens,
            "tokens_per_virtual_s": self.generated_tokens / self.virtual_s if self.virtual_s else None,
            "wall_s": self.wall_s,
            "tokens_per_wall_s": self.generated_tokens / self.wall_s if self.wall_s else None,
            "kv_while_busy": self.tally.means(), "kv_while_requests_wait": self.tally.means(only_waiting=True),
            "preemptions": self.preemptions, "recomputed_tokens": self.recomputed_tokens,
            "swapped_out_blocks": self.swapped_out_blocks, "swapped_in_blocks": self.swapped_in_blocks,
            "prefix_queries": self.prefix_queries, "prefix_hits": self.prefix_hits,
            **self.latencies(),
        }


def _quantiles(samples: npt.NDArray[np.float64]) -> dict[str, float] | None:
    if len(samples) == 0:
        return None
    p50, p90, p99 = np.quantile(samples, [0.5, 0.9, 0.99])
    return {"mean": float(samples.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99),
            "max": float(samples.max())}
