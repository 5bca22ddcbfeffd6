"""The metrics page reader against pages as engines write them, traps included."""

import math

import pytest

from pabench.errors import EngineProtocol
from pabench.telemetry.exposition import parse_exposition


def values(page, name, **kwargs):
    return [sample.value for sample in parse_exposition(page, **kwargs).get(name, [])]


def test_labels_and_values_are_kept():
    page = 'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1.0\n'
    (sample,) = parse_exposition(page)["vllm:num_requests_waiting_by_reason"]
    assert sample.labels == {"engine": "0", "reason": "capacity"}
    assert sample.value == 1.0


def test_label_values_hold_quotes_braces_and_commas():
    page = 'x{a="say \\"hi\\", {ok} # no comment",b="c\\\\d"} 2\n'
    (sample,) = parse_exposition(page)["x"]
    assert sample.labels == {"a": 'say "hi", {ok} # no comment', "b": "c\\d"}


@pytest.mark.parametrize("prefix", ["vllm", "sglang", "lmdeploy", "llamacpp", "pabench_ref"])
def test_openmetrics_escaped_names_get_their_colon_back(prefix):
    page = f'# TYPE {prefix}:token_usage gauge\n{prefix}_token_usage{{a="b"}} 0.5\n# EOF\n'
    assert values(page, f"{prefix}:token_usage") == [0.5]


def test_other_names_keep_their_underscore():
    assert values("trtllm_num_requests_running 3\n", "trtllm_num_requests_running") == [3.0]


def test_quoted_utf8_names_are_read():
    assert values('{"vllm:num_requests_running",engine="0"} 4\n', "vllm:num_requests_running") == [4.0]
    assert values('{"vllm:num_requests_running",engine="0"} 4\n', "vllm:num_requests_running",
                  names={"vllm:num_requests_running"}) == [4.0]


def test_created_gauges_beside_counters_and_histograms_are_dropped():
    page = (
        "# TYPE vllm:num_preemptions_total counter\nvllm:num_preemptions_total 1\n"
        "# TYPE vllm:num_preemptions_created gauge\nvllm:num_preemptions_created 1.79e9\n"
        '# TYPE vllm:ttft_seconds histogram\nvllm:ttft_seconds_bucket{le="+Inf"} 1\nvllm:ttft_seconds_created 1.79e9\n'
    )
    found = parse_exposition(page)
    assert "vllm:num_preemptions_created" not in found
    assert "vllm:ttft_seconds_created" not in found
    assert found["vllm:num_preemptions_total"][0].value == 1


def test_a_gauge_that_merely_ends_in_created_is_kept():
    assert values("# TYPE pods_created gauge\npods_created 7\n", "pods_created") == [7.0]


def test_nan_and_infinity_are_values():
    page = "sglang:fwd_occupancy NaN\nbig +Inf\n"
    assert math.isnan(values(page, "sglang:fwd_occupancy")[0])
    assert values(page, "big") == [math.inf]


def test_summaries_keep_quantiles_sum_and_count():
    page = '# TYPE tgi_skipped summary\ntgi_skipped{quantile="0.5"} 3\ntgi_skipped_sum 9\ntgi_skipped_count 3\n'
    found = parse_exposition(page)
    assert found["tgi_skipped"][0].labels == {"quantile": "0.5"}
    assert (found["tgi_skipped_sum"][0].value, found["tgi_skipped_count"][0].value) == (9, 3)


def test_counters_keep_the_name_that_the_engine_wrote():
    """metrics-rs adds no `_total`; the library's page reader would."""
    assert values("# TYPE tgi_request_count counter\ntgi_request_count 5\n", "tgi_request_count") == [5.0]


def test_a_histogram_named_total_keeps_its_name():
    page = (
        "# TYPE vllm:iteration_tokens_total histogram\nvllm:iteration_tokens_total_sum 38.0\n"
        'vllm:iteration_tokens_total_bucket{le="1.0"} 0.0\nvllm:iteration_tokens_total_count 1.0\n'
    )
    found = parse_exposition(page)
    assert found["vllm:iteration_tokens_total_count"][0].value == 1
    assert "vllm:iteration_tokens_total" not in found


def test_a_gauge_may_carry_le():
    page = '# TYPE sglang:running_by_key gauge\nsglang:running_by_key{gt="1",le="5"} 2\n'
    assert parse_exposition(page)["sglang:running_by_key"][0].labels == {"gt": "1", "le": "5"}


def test_pid_series_stay_apart():
    page = 'sglang:num_paused_reqs{pid="1"} 1\nsglang:num_paused_reqs{pid="2"} 3\n'
    assert values(page, "sglang:num_paused_reqs") == [1.0, 3.0]


def test_exemplars_and_timestamps_are_no_part_of_the_value():
    page = 'a_bucket{le="1"} 5 # {trace_id="x"} 0.5 123\nb 6 1700000000000\n'
    found = parse_exposition(page)
    assert (found["a_bucket"][0].value, found["b"][0].value) == (5, 6)


def test_absent_series_are_absent_and_not_zero():
    assert "vllm:num_preemptions_total" not in parse_exposition("# TYPE vllm:num_preemptions_total counter\n")


def test_one_damaged_line_costs_that_line():
    assert values('good 1\nbad{x="y} oops\nbetter 2\n', "better") == [2.0]


def test_names_limits_what_is_read():
    page = "vllm_a 1\nvllm:b 2\nc 3\n"
    assert set(parse_exposition(page, {"vllm:a", "c"})) == {"vllm:a", "c"}


@pytest.mark.parametrize("page", ["<!doctype html>\n<p>no metrics</p>\n", '{"kvCacheStats": {"usedNumBlocks": 1}}\n'])
def test_a_page_that_is_no_exposition_is_refused(page):
    with pytest.raises(EngineProtocol, match="no Prometheus text"):
        parse_exposition(page)


def test_an_empty_page_holds_nothing():
    assert parse_exposition(b"") == {}
