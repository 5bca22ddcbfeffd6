"""Tables of metric names -> the KV vocabulary."""

import pytest

from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.mapping import bool_label, int_label, read_kv_sample
from pabench.telemetry.vocabulary import KVFacts, KVSample

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


@pytest.mark.parametrize("value", ["1e308", "+Inf", "-Inf", "1" + "0" * 400])
def test_what_counts_nothing_is_left_out(value):
    assert sample_of(f"running {value}\npreemptions_total 2\n") == KVSample(2.5, preemptions=2)
    assert sample_of(f'running{{engine="0"}} {value}\nrunning{{engine="1"}} 3\n').running == 3


def test_what_is_below_nothing_is_told_as_it_is():
    """A pool that has freed a block twice."""
    assert sample_of("running -1\n").running == -1


def test_labels_beyond_all_counting_are_none():
    assert int_label({"n": "1" * 5000}, "n") is None


@pytest.mark.parametrize("number", [0, -32])
def test_a_cache_of_no_blocks_is_none_that_is_known(number):
    assert KVFacts(block_size=number, num_blocks=number) == KVFacts()
