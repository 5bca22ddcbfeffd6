"""From metric names to the one KV vocabulary: a table per dialect, read here."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pabench.telemetry.vocabulary import KVSample, MetricFamilies

MetricTable = Mapping[str, tuple[str, ...]]
"""Field of `KVSample` -> metric names that hold it, newest name first; the first one present counts."""

# Shares of one pool: with several pools (data parallel engines) the mean is meant, everything else adds up.
_FRACTIONS = frozenset({"kv_usage", "kv_cached"})
_MOST = 2.0 ** 53    # a float counts no further
_MOST_DIGITS = 15


def read_kv_sample(metrics: MetricFamilies, time_s: float, table: MetricTable) -> KVSample:
    """The KV vocabulary at `time_s`. What the page does not hold, or holds as no count of anything, is None."""
    values = {field: read_field(metrics, field, names) for field, names in table.items()}
    return KVSample(time_s, **values)


def read_field(metrics: MetricFamilies, field: str, names: tuple[str, ...]) -> float | None:
    """Value of `field` over all series of the first of `names` that is present. NaN and what is beyond all
    counting say nothing: one such number would end every later reading of the run.
    """
    present = source_of(metrics, names)
    if present is None:
        return None
    values = [sample.value for sample in metrics[present] if counts(sample.value)]
    total = math.fsum(values)
    return total / len(values) if field in _FRACTIONS else total


def counts(value: float) -> bool:
    """Whether something can be made of `value`. One below 0 stays: that it should not be, the suite tells."""
    return abs(value) <= _MOST  # not NaN either


def source_of(metrics: MetricFamilies, names: tuple[str, ...]) -> str | None:
    """The first of `names` that the page holds, with a value: engines show a number under its older names too."""
    return next((name for name in names if any(counts(sample.value) for sample in metrics.get(name, ()))), None)


def info_labels(metrics: MetricFamilies, name: str) -> Mapping[str, str]:
    """Labels of an `_info` metric, empty where the page does not hold it."""
    samples = metrics.get(name)
    return samples[0].labels if samples else {}


def int_label(labels: Mapping[str, str], name: str) -> int | None:
    """A label that holds a whole number; None where absent or spelt "None"."""
    text = labels.get(name, "")
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def int_gauge(metrics: MetricFamilies, name: str) -> int | None:
    """A gauge that holds one whole number, the same in all its series; None where absent or not that."""
    values = {sample.value for sample in metrics.get(name, ())}
    value = values.pop() if len(values) == 1 else math.nan
    return int(value) if counts(value) and value.is_integer() else None


def bool_label(labels: Mapping[str, str], name: str) -> bool | None:
    """A label that holds a truth value in any engine's spelling; None where it is neither."""
    return {"true": True, "1": True, "false": False, "0": False}.get(labels.get(name, "").lower())
