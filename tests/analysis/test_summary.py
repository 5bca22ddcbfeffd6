"""Figures of hand-made records, each worked out by hand beside it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pabench.analysis import Run, RunSummary, WasteSplit, comparison_frame, comparison_table, find_runs, summarise
from pabench.analysis.kv import live_tokens, shared_tokens
from pabench.analysis.summary import Validity
from pabench.analysis.tables import knee, knee_text
from pabench.errors import UsageError
from pabench.load.manifest import Resumption
from pabench.load.records import RequestRecord
from pabench.load.window import steady_window
from pabench.report.run_tables import all_table
from pabench.telemetry.vocabulary import KVSample
from tests.analysis.by_hand import A, B, C, D, frame, made
from tests.load.support import workload


@pytest.mark.parametrize(("dialect", "shown"), [("tgi", "n/a"), ("openai", "–"), ("a later one", "–")])
def test_what_an_engine_cannot_have_is_not_shown_as_untold(dialect: str, shown: str) -> None:
    run = made([A, B])
    run.manifest.engine.dialect = dialect
    summary = summarise(run)
    assert summary.preemptions is None
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_table([summary]))
    row = next(line for line in console.export_text().splitlines() if "preemptions" in line)
    assert shown in row
    engine: Any = SimpleNamespace(name="e", index=0, runs=[SimpleNamespace(summary=summary, believable=True)])
    table = all_table([engine])
    at = [column.key for column in table.columns].index("preemptions")
    assert [cells[at].text for cells in table.rows] == [shown]


def test_ttft_by_priority() -> None:
    both = [replace(A, priority=5), replace(B, priority=-1), replace(C, priority=-1), replace(D, priority=-1)]
    found = summarise(made(both)).ttft_ms_by_priority
    assert {name: (told.count, round(told.p50)) for name, told in found.items()} == {"-1": (1, 200), "5": (1, 100)}
    assert list(found) == ["-1", "5"]
    assert summarise(made([A, B])).ttft_ms_by_priority == {}


def test_latencies_by_hand() -> None:
    summary = summarise(made([A, B, C, D]))
    assert summary.ttft_ms is not None
    assert summary.ttft_intended_ms is not None
    assert summary.tpot_ms is not None
    assert summary.itl_ms is not None
    assert summary.e2e_ms is not None
    assert summary.lateness_ms is not None
    assert summary.normalised_latency_ms is not None
    # Only A and B are ok: 0.11 - 0.01 and 0.22 - 0.02 from sent, 0.11 and 0.22 from intended.
    assert summary.ttft_ms.count == 2
    assert (summary.ttft_ms.mean, summary.ttft_ms.max) == (pytest.approx(150), pytest.approx(200))
    assert summary.ttft_intended_ms.mean == pytest.approx(165)
    # A: 0.3 / 3. B: 0.2 / 3.
    assert summary.tpot_ms.mean == pytest.approx((100 + 200 / 3) / 2)
    # A: three gaps of 100. B: two chunks of two: one gap of 200 spread over two tokens, and 0 inside the first chunk.
    assert summary.itl_ms.count == 6
    assert summary.itl_ms.mean == pytest.approx((300 + 200) / 6)
    assert summary.itl_ms.max == pytest.approx(100)
    assert summary.itl_spread_share == pytest.approx(3 / 6)
    # A: 0.41 - 0.01; B: 0.42 - 0.02. Four tokens each.
    assert summary.e2e_ms.mean == pytest.approx(400)
    assert summary.normalised_latency_ms.mean == pytest.approx(100)
    assert summary.lateness_ms.max == pytest.approx(20)


def test_window_and_throughput_by_hand() -> None:
    # Both users have sent by 0.02 and the first token came at 0.11; the first user without work is 0, at 0.82.
    summary = summarise(made([A, B, C, D]))
    assert summary.window_s == (pytest.approx(0.11), pytest.approx(0.82))
    # Tokens at 0.11 (included) to 0.82 (not): A 4, B 4, C 3. C's answer was wrong: none of its tokens is verified.
    assert summary.throughput_tokens_per_s == pytest.approx(11 / 0.71)
    # No token came before, and C's last one after it; the run ends with D's cut connection.
    assert summary.ramp_tokens_per_s == 0
    assert summary.drain_tokens_per_s == pytest.approx(1 / (summary.duration_s - 0.82))
    assert summary.verified_tokens_per_s == pytest.approx(8 / 0.71)
    assert summary.request_rate_per_s == pytest.approx(2 / 0.71)
    assert (summary.output_tokens, summary.verified_tokens, summary.wrong_tokens) == (12, 9, 3)
    assert summary.outcomes == {"ok": 2, "wrong": 1, "error": 1, "timeout": 0, "aborted": 0, "unsent": 0}
    assert summary.diagnoses == ("c\nexpected output 1",)


def test_an_open_window_leaves_ramp_and_drain_out() -> None:
    records = [RequestRecord(str(i), i, None, intended_s=i * 1.0, sent_s=i * 1.0, first_s=i + 0.5, last_s=i + 2.0,
                             end_s=i + 2.0, outcome="ok") for i in range(11)]
    # From the median duration, 2 s, after the first start, to the last intended one, not to its end at 12 s.
    assert steady_window(records) == (2.0, 10.0)
    assert steady_window([]) is None
    # The turns that follow answers arrive when the sessions run out: they move neither end.
    assert steady_window(records, later_turns={8, 9, 10}) == (2.0, 7.0)


def test_live_tokens_by_hand() -> None:
    times = np.array([0.05, 0.11, 0.25, 0.415, 0.5, 0.6])
    # Before a first token nothing; A: 10 + 1; A 10 + 2, B 20 + 2; A 10 + 4, B 20 + 2; nothing; C 10 + 1.
    assert live_tokens(frame([A, B, C, D]), times).tolist() == [0, 11, 34, 36, 0, 11]


def test_a_prompt_is_as_long_as_the_engine_says() -> None:
    """Of a text, and behind a chat template, the client can only guess."""
    one = RequestRecord("t", 0, 0, intended_s=0, sent_s=0, first_s=1.0, last_s=1.0, end_s=3.0, outcome="ok",
                        prompt_tokens=100, usage_prompt_tokens=150, token_times_s=[1.0], token_choices=[0])
    assert live_tokens(frame([one]), np.array([2.0])).tolist() == [151]


def test_samples_of_a_request_hold_their_prompt_once() -> None:
    both = RequestRecord("n", 0, 0, intended_s=0, sent_s=0, first_s=1.0, last_s=1.0, end_s=3.0, outcome="ok", n=2,
                         prompt_tokens=50, token_times_s=[1.0, 1.0], token_choices=[0, 1])
    assert live_tokens(frame([both]), np.array([2.0])).tolist() == [52]


def test_live_tokens_with_shared_prefixes_once() -> None:
    """Three prompts of 40 tokens, whose blocks of 16 are (1, 2), (1,) and (1, 2), live at 1..4, 2..6 and 3..5."""
    def one(name: str, first_s: float, end_s: float, blocks: list[int]) -> RequestRecord:
        return RequestRecord(name, 0, 0, intended_s=0, sent_s=0, first_s=first_s, last_s=first_s, end_s=end_s,
                             outcome="ok", prompt_tokens=40, token_times_s=[first_s], token_choices=[0],
                             prefix_blocks=blocks)

    requests = frame([one("a", 1, 4, [1, 2]), one("b", 2, 6, [1]), one("c", 3, 5, [1, 2]), one("d", 5.5, 7, [])])
    at = np.array([1.5, 2.5, 3.5, 4.5, 5.2, 5.8, 6.5])
    assert live_tokens(requests, at).tolist() == [41, 82, 123, 82, 41, 82, 41]
    # b brings 40 - 16, c 40 - 32; a takes 40 - 32 with it, for b and c hold the others, c then 40 - 16, b all of its.
    assert live_tokens(requests, at, shared=shared_tokens(requests, 16)).tolist() == [41, 66, 75, 66, 41, 82, 41]


def test_kv_figures_by_hand() -> None:
    samples = [
        KVSample(0.0, kv_usage=0.0, running=0, preemptions=5, prefix_queries=100, prefix_hits=10,
                 token_states_tokens=0, reserved_tokens=0, internal_waste_tokens=0, external_waste_tokens=0),
        KVSample(0.25, kv_usage=0.5, running=2, preemptions=6, prefix_queries=120, prefix_hits=25,
                 token_states_tokens=34, reserved_tokens=6, internal_waste_tokens=10, external_waste_tokens=5),
        KVSample(0.6, kv_usage=0.3, running=1, preemptions=8, prefix_queries=140, prefix_hits=30,
                 token_states_tokens=11, reserved_tokens=9, internal_waste_tokens=10, external_waste_tokens=5),
        KVSample(0.95, kv_usage=1.0, running=9, preemptions=8, prefix_queries=140, prefix_hits=30),
    ]
    summary = summarise(made([A, B, C, D], samples))
    assert summary.peak_running == 9           # over the run
    assert summary.mean_running == 1.5         # over the window: two scrapes
    assert summary.kv_usage_mean == pytest.approx(0.4)
    assert summary.kv_usage_max == 0.5
    assert summary.preemptions == 3
    assert summary.prefix_hit_rate == pytest.approx(20 / 40)
    # Live 34 and 11 at the two scrapes; slots in use 50 and 30 of 100.
    assert summary.effective_utilisation == pytest.approx(45 / 80)
    assert summary.waste == WasteSplit(pytest.approx(0.225), pytest.approx(0.075), pytest.approx(0.10),
                                       pytest.approx(0.05), pytest.approx(0.55))


def test_what_an_engine_does_not_tell_is_none_and_not_zero() -> None:
    summary = summarise(made([A, B], [KVSample(0.2), KVSample(0.3)]))
    assert (summary.kv_usage_mean, summary.peak_running, summary.preemptions, summary.waste) == (None,) * 4
    assert (summary.effective_utilisation, summary.prefix_hit_rate) == (None, None)
    unchecked = RequestRecord("t", 0, 0, intended_s=0, sent_s=0, first_s=1.0, last_s=2.0, end_s=2.0, outcome="ok",
                              stream_tokens=2, token_times_s=[1.0, 2.0], token_choices=[0, 0])
    text = summarise(made([unchecked]))
    assert (text.verified_tokens, text.verified_tokens_per_s, text.wrong_tokens) == (None, None, None)
    assert text.output_tokens == 2  # counted in the stream where usage is not told


def test_answers_without_token_times_count_at_their_ends_and_tell_no_live_tokens() -> None:
    samples = [KVSample(0.2, kv_usage=0.5), KVSample(0.6, kv_usage=0.5)]
    whole = [replace(one, first_s=None, last_s=None, token_times_s=[], token_choices=[]) for one in (A, B, C, D)]
    summary = summarise(made(whole, samples, window_s=(0.0, 0.8)))
    # A and B end inside the window with 4 tokens each, C outside it.
    assert summary.throughput_tokens_per_s == pytest.approx(8 / 0.8)
    assert summary.verified_tokens_per_s == pytest.approx(8 / 0.8)
    assert (summary.effective_utilisation, summary.live_tokens_mean) == (None, None)
    assert summary.kv_usage_mean == 0.5


def test_end_to_end_is_to_the_last_token_and_to_the_end_only_without_token_times() -> None:
    late_end = replace(A, end_s=0.9)
    whole = replace(late_end, first_s=None, last_s=None, token_times_s=[], token_choices=[])
    for one, expected_ms in ((late_end, 400), (whole, 890)):
        found = summarise(made([one])).e2e_ms
        assert found is not None
        assert found.max == pytest.approx(expected_ms)


def test_a_restarted_counter_counts_from_zero() -> None:
    samples = [KVSample(0.1, preemptions=7), KVSample(0.2, preemptions=9), KVSample(0.3, preemptions=1)]
    assert summarise(made([A, B], samples)).preemptions == 3


def test_what_a_counter_grew_while_the_run_was_broken_off_is_not_the_runs() -> None:
    """The engine went on, and served others."""
    samples = [KVSample(0.1, preemptions=0, prefix_queries=0, prefix_hits=0),
               KVSample(0.4, preemptions=1, prefix_queries=100, prefix_hits=90),
               KVSample(0.5, preemptions=501, prefix_queries=100_100, prefix_hits=90),
               KVSample(0.9, preemptions=502, prefix_queries=100_200, prefix_hits=180)]
    summary = summarise(made([A, B], samples, resumed=[Resumption(at_s=0.5, shift_s=0.0)]))
    assert (summary.preemptions, summary.prefix_hit_rate) == (2, 0.9)


def test_a_counter_that_is_told_late_stood_at_zero() -> None:
    """TensorRT-LLM shows its token counters from the first request that ends."""
    samples = [KVSample(0.1, running=0), KVSample(0.2, running=1), KVSample(0.3, prefix_queries=100, prefix_hits=60),
               KVSample(0.4), KVSample(0.5, prefix_queries=200, prefix_hits=80)]
    summary = summarise(made([A, B], samples))
    assert summary.prefix_hit_rate == 0.4
    assert summary.preemptions is None


def test_tables_hold_a_row_a_run_and_show_hostile_text_as_text() -> None:
    run = made([A, B, C, D])
    run.manifest.label = "evil \x1b[31m[bold]label"
    summaries = [summarise(run), summarise(made([A, B]))]
    found = comparison_frame(summaries)
    assert found["ok"].tolist() == [2, 2]
    assert found["wrong_tokens"].tolist() == [3, 0]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table(summaries))
    text = console.export_text()
    assert "\x1b" not in text
    assert "[bold]label" in text
    assert "3 WRONG" in text


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("b/one", "a", "a/deeper"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "manifest.json").touch()
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "a/deeper", tmp_path / "b/one"]
    with pytest.raises(UsageError, match="is no folder"):
        find_runs(tmp_path / "nowhere")


def test_goodput_of_answers_without_token_times_is_not_known() -> None:
    whole = [replace(one, first_s=None, last_s=None, token_times_s=[], token_choices=[]) for one in (A, B)]
    load = workload(num_requests=2, slo={"ttft_ms": 500})
    assert summarise(made(whole, workload=load)).goodput_per_s is None
    assert summarise(made([A, B], workload=load)).goodput_per_s is not None


def test_the_knee_is_where_throughput_over_latency_is_highest() -> None:
    base = replace(summarise(made([A, B])), validity=Validity(True, ()))
    assert base.e2e_ms is not None
    runs = [replace(base, load=load, users=users, verified_tokens_per_s=rate, throughput_tokens_per_s=1000.0,
                    e2e_ms=replace(base.e2e_ms, mean=mean), validity=Validity(True))
            for load, users, rate, mean in (("1 user", 1, 10.0, 100.0), ("16 users", 16, 40.0, 400.0),
                                            ("4 users", 4, 36.0, 120.0), ("8 users", 8, 38.0, 130.0))]
    best = knee([*runs, replace(base, e2e_ms=None)])
    assert best is not None
    assert best.load == "4 users"
    assert knee_text(runs).endswith("mean latency): 4 users")
    # What is INVALID is no knee, and the highest load is none either: beyond it nothing was tried.
    assert knee_text([*runs[:2], replace(runs[2], validity=Validity(False)), runs[3]]).endswith("): 8 users")
    assert knee([runs[0], runs[2]]) is None
    assert knee_text([runs[2], runs[0]]).startswith("no knee up to 4 users")
    assert knee([replace(base, e2e_ms=None)]) is None
    assert knee_text([runs[0], replace(runs[1], validity=Validity(False))]).startswith("no knee: 1 of 2 runs VALID")


def test_goodput_counts_what_was_in_time_and_right() -> None:
    # A: TTFT 110 ms from the intended start, B: 220; C is wrong and D an error, so never in time.
    records = [A, B, C, D]
    run = made(records, window_s=(0.0, 0.5))
    slow = replace_slo(run, {"ttft_ms": 150.0})
    assert (slow.goodput_per_s, slow.in_time_share, slow.slo) == (2.0, 0.25, "TTFT <= 150 ms")
    both = replace_slo(run, {"ttft_ms": 300.0, "tpot_ms": 90.0})  # A has a TPOT of 100 ms, B one of 67
    assert (both.goodput_per_s, both.in_time_share) == (2.0, 0.25)
    assert summarise(run).goodput_per_s is None


def replace_slo(run: Run, slo: dict[str, float]) -> RunSummary:
    changed = run.manifest.model_copy(update={"workload": workload(num_requests=4, slo=slo)})
    return summarise(replace(run, manifest=changed))


WHOLE = replace(A, first_s=None, last_s=None, token_times_s=[], token_choices=[])  # it ends at 0.42


def test_without_a_window_the_read_that_ends_the_run_counts() -> None:
    summary = summarise(made([WHOLE], window_s=None, duration_s=0.42))
    assert summary.throughput_tokens_per_s == pytest.approx(4 / 0.42)
    assert summary.request_rate_per_s == pytest.approx(1 / 0.42)
    assert summary.drain_tokens_per_s is None
    # Of C all four, the last one at the end of the run, and no second in it that the window has.
    drain = summarise(made([A, B, C], window_s=(0.11, 0.5), duration_s=0.82)).drain_tokens_per_s
    assert drain == pytest.approx(4 / 0.32)
    assert summarise(made([A, B, C], window_s=(0.11, 0.82), duration_s=0.82)).drain_tokens_per_s is None


def test_usage_counts_no_more_tokens_than_were_asked_for() -> None:
    claims = [replace(WHOLE, output_tokens=10**9), replace(WHOLE, index=1, output_tokens=10**9, n=2)]
    summary = summarise(made(claims, window_s=(0.0, 0.5)))
    assert summary.throughput_tokens_per_s == pytest.approx((4 + 8) / 0.5)
    assert summary.output_tokens == 12
