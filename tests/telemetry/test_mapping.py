"""Tables of metric names -> the KV vocabulary."""

import pytest

from pabench.errors import EngineProtocol
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.mapping import bool_label, int_label, read_kv_sample

TABLE = {"kv_usage": ("new_usage", "old_usage"), "running": ("running",), "preemptions": ("preemptions_total",)}


def sample_of(page):
    return read_kv_sample(parse_exposition(page), 2.5, TABLE)


def test_the_newest_name_wins_and_the_old_one_serves():
    assert sample_of("old_usage 0.2\n").kv_usage == 0.2
    assert sample_of("old_usage 0.2\nnew_usage 0.3\n").kv_usage == 0.3


def test_shares_are_averaged_over_pools_and_counts_added():
    page = 'new_usage{engine="0"} 0.2\nnew_usage{engine="1"} 0.6\nrunning{engine="0"} 3\nrunning{engine="1"} 4\n'
    sample = sample_of(page)
    assert abs(sample.kv_usage - 0.4) < 1e-12
    assert sample.running == 7


def test_what_is_absent_or_nan_is_none():
    sample = sample_of("running NaN\n")
    assert (sample.kv_usage, sample.running, sample.preemptions, sample.time_s) == (None, None, None, 2.5)


def test_labels_are_read_in_any_spelling():
    labels = {"n": "4096", "none": "None", "yes": "True", "no": "false", "one": "1"}
    assert (int_label(labels, "n"), int_label(labels, "none"), int_label(labels, "absent")) == (4096, None, None)
    truths = [bool_label(labels, name) for name in ("yes", "no", "one", "none", "absent")]
    assert truths == [True, False, True, None, None]


@pytest.mark.parametrize("values", [("1e308", "1e308"), ("+Inf", "-Inf")])
def test_series_without_a_sum_are_a_fault_of_the_page(values):
    page = "".join(f'running{{engine="{number}"}} {value}\n' for number, value in enumerate(values))
    with pytest.raises(EngineProtocol, match="the series of running have no sum"):
        sample_of(page)
