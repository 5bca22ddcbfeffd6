"""The KV cache during a run: live tokens from the client's own record, and what the engine's gauges say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pabench.analysis.latency import prompt_tokens, token_times
from pabench.analysis.summary import WasteSplit

Window = tuple[float, float]
_SPLIT = ("token_states_tokens", "reserved_tokens", "internal_waste_tokens", "external_waste_tokens")


class Shared(NamedTuple):
    """Tokens of each request's prompt that others hold when it begins, and when it ends: `[num_held]` each, of the
    requests that have a first token and an end.
    """

    there: NDArray[np.float64]
    stay: NDArray[np.float64]


def live_tokens(
    requests: pd.DataFrame, times_s: NDArray[np.float64], *, shared: Shared | None = None
) -> NDArray[np.float64]:
    """Tokens whose keys and values must be held, at each of `times_s`: `[len(times_s)]`.

    A request counts from its first token (before, it may still wait) to its end: its prompt, which its samples hold
    once, plus what was generated. With `shared` a block that several requests hold at a time counts once, as in a
    prefix cache; else each request has its own.
    """
    held = _held(requests)
    prompts = prompt_tokens(held)
    there, stay = (0.0, 0.0) if shared is None else shared
    counts = np.asarray([len(row) for row in held["token_times_s"]], dtype=np.int64)
    order = np.argsort(times_s)
    asked_s = times_s[order]

    def come(at: NDArray[np.float64], tokens: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """What has come by each of `asked_s`. Events go into bins, unsorted: there may be a hundred million."""
        bins = np.bincount(np.searchsorted(asked_s, at), weights=tokens, minlength=len(asked_s) + 1)
        return np.cumsum(bins[:-1], dtype=np.float64)

    total = np.empty(len(times_s))
    total[order] = (come(held["first_s"].to_numpy(), prompts - there) + come(token_times(held))
                    - come(held["end_s"].to_numpy(), prompts - stay + counts))
    return total


def shared_tokens(requests: pd.DataFrame, size: int) -> Shared:
    """What the requests hold together of their `prefix_blocks`, of `size` tokens each."""
    held = _held(requests)
    holders: Counter[int] = Counter()
    there, stay = np.zeros(len(held)), np.zeros(len(held))
    sharing = {row: blocks.tolist() for row, blocks in enumerate(held["prefix_blocks"])
               if blocks is not None and len(blocks)}
    first_s, end_s = (held[name].to_numpy() for name in ("first_s", "end_s"))
    events = [(first_s[row], 1, row) for row in sharing] + [(end_s[row], 0, row) for row in sharing]
    for _, begins, row in sorted(events):  # who ends at that moment goes first
        step, found = (1 if begins else -1), 0
        for block in sharing[row]:
            before = holders[block]
            holders[block] = before + step
            found += min(before, before + step) > 0
        (there if begins else stay)[row] = size * found
    return Shared(there, stay)


def _held(requests: pd.DataFrame) -> pd.DataFrame:
    return requests.dropna(subset=["first_s", "end_s"])


def mean_live_tokens(requests: pd.DataFrame, window: Window, shared: Shared | None = None) -> float | None:
    """Mean of `live_tokens` over the window, by time."""
    if window[1] <= window[0] or not requests["first_s"].notna().any():
        return None
    grid = np.linspace(window[0], window[1], 2001)
    return float(np.mean(live_tokens(requests, (grid[:-1] + grid[1:]) / 2, shared=shared)))


def in_window(telemetry: pd.DataFrame, window: Window) -> pd.DataFrame:
    """The scrapes inside the window."""
    times = telemetry["time_s"]
    return telemetry[(times >= window[0]) & (times <= window[1])]


def effective_utilisation(
    requests: pd.DataFrame, telemetry: pd.DataFrame, window: Window, capacity_tokens: int | None,
    shared: Shared | None = None,
) -> float | None:
    """Live tokens / slots in use, over the scrapes in the window that tell the use; `shared` as in `live_tokens`.

    Above 1 where requests share slots, or are preempted: the client cannot see that such a request holds none.
    None where it is not told, or where no answer has token times to tell the live tokens from.
    """
    told = in_window(telemetry, window).dropna(subset=["kv_usage"])
    if capacity_tokens is None or told.empty or told["kv_usage"].sum() <= 0 or not requests["first_s"].notna().any():
        return None
    live = live_tokens(requests, told["time_s"].to_numpy(dtype=np.float64), shared=shared)
    return float(live.sum() / (told["kv_usage"].sum() * capacity_tokens))


def counter_increase(telemetry: pd.DataFrame, column: str, breaks_s: Sequence[float] = ()) -> float | None:
    """How much a counter grew over the run; `breaks_s`: see `increases`. None where it is not told."""
    told = counter(telemetry, column).dropna()
    values, times_s = (np.asarray(each, dtype=np.float64) for each in (told, telemetry.loc[told.index, "time_s"]))
    return float(increases(values, times_s, breaks_s).sum()) if len(values) > 1 else None


def counter(telemetry: pd.DataFrame, column: str) -> pd.Series[float]:
    """A counter by scrape. One that is told later than others stood at zero before: clients of Prometheus show a
    counter with labels from its first count on.
    """
    values = telemetry[column].astype("float64")
    return values.where(values.ffill().notna(), 0.0) if values.notna().any() else values


def increases(
    values: NDArray[np.float64], times_s: NDArray[np.float64], breaks_s: Sequence[float]
) -> NDArray[np.float64]:
    """Between neighbours, at `times_s` each; a fall is a restart, from zero. None over one of `breaks_s`, at which a
    run was broken off and its clock stood still: what grew meanwhile may be anybody's.
    """
    steps = np.diff(values)
    broken = np.zeros(len(steps), dtype=bool)
    for at_s in breaks_s:
        broken |= (times_s[:-1] < at_s) & (times_s[1:] >= at_s)
    return np.where(broken, 0.0, np.where(steps >= 0, steps, values[1:]))


def prefix_hit_rate(telemetry: pd.DataFrame, breaks_s: Sequence[float] = ()) -> float | None:
    """Prompt tokens found in the prefix cache / prompt tokens looked up, over the run; `breaks_s`: see `increases`."""
    queries, hits = (counter_increase(telemetry, name, breaks_s) for name in ("prefix_queries", "prefix_hits"))
    return None if queries is None or hits is None or queries <= 0 else hits / queries


def waste_split(telemetry: pd.DataFrame, window: Window, capacity_tokens: int | None) -> WasteSplit | None:
    """Mean shares of all slots over the scrapes in the window while requests ran. None where it is not told."""
    told = in_window(telemetry, window).dropna(subset=list(_SPLIT))
    told = told[told["running"].fillna(0) > 0]
    if capacity_tokens is None or told.empty:
        return None
    states, reserved, internal, external = (float(told[column].mean()) / capacity_tokens for column in _SPLIT)
    return WasteSplit(states, reserved, internal, external,
                      free=max(0.0, 1.0 - states - reserved - internal - external))
