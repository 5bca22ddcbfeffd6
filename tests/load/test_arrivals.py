"""Laws of arrival: as many as they say, where they say, from one seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load.arrivals import ConstantArrivals, GammaArrivals, PoissonArrivals, RampArrivals, StepArrivals
from pabench.load.draws import NoArrivals, draw_arrivals
from pabench.load.planning import plan
from pabench.load.workload import load_workload, parse_workload
from pabench.probe import PRESETS

FIELDS = {"name": "w", "description": "d", "prompt": "probe", "prompt_tokens": {"law": "fixed", "tokens": 8},
          "output_tokens": {"law": "fixed", "tokens": 8}}


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def dispersion(starts: np.ndarray, window_s: float) -> float:
    """Variance of the counts in windows over their mean: 1 for a Poisson process."""
    counts = np.bincount((starts / window_s).astype(int))[:-1]
    return float(counts.var() / counts.mean())


def test_poisson_is_poisson() -> None:
    starts = PoissonArrivals(kind="poisson", rate_per_s=100.0).starts(rng(), 200_000)
    assert starts[-1] == pytest.approx(2000, rel=0.02)
    assert dispersion(starts, 0.5) == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_vary_as_they_should(burstiness: float) -> None:
    starts = GammaArrivals(kind="gamma", rate_per_s=50.0, burstiness=burstiness).starts(rng(), 200_000)
    gaps = np.diff(starts)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.03)
    assert dispersion(starts, 10.0) == pytest.approx(1 / burstiness, rel=0.2)


@pytest.mark.parametrize(("burstiness", "expected", "within"), [(0.25, 80, 2), (0.05, 80, 5), (4.0, 80, 1)])
def test_bursts_come_at_their_rate_in_a_short_run_too(burstiness: float, expected: int, within: float) -> None:
    """Of 4 a second in 20 s: were the first gap one that has just begun, 82 and 90 would come of the first two."""
    law = GammaArrivals(kind="gamma", rate_per_s=4.0, burstiness=burstiness)
    found = [np.count_nonzero(law.starts(np.random.default_rng(seed), 2000) < 20) for seed in range(3000)]
    error = np.std(found) / len(found)**0.5
    assert law.expected(20.0) == expected
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)
    assert 4 * error < within


def test_more_requests_than_anybody_sends_are_refused_before_they_are_drawn() -> None:
    workload = parse_workload({**FIELDS, "arrivals": {"kind": "poisson", "rate_per_s": 1e8}, "duration_s": 20.0}, "x")
    with pytest.raises(UsageError, match=r"2e\+09 requests would come in 20 s, and a run has at most 100,000,000"):
        draw_arrivals(workload, rng())


def test_steps_come_at_their_rates_and_pauses_are_empty() -> None:
    law = StepArrivals(kind="steps", rates_per_s=[100.0, 0.0, 400.0], step_s=20.0)
    starts = law.starts(rng(), 100_000)
    assert np.all(np.diff(starts) >= 0)
    counts = np.bincount((starts / 20).astype(int), minlength=3)
    assert counts[1] == 0
    assert counts[0] == pytest.approx(2000, abs=5 * 2000**0.5)
    assert counts[2] == pytest.approx(8000, abs=5 * 8000**0.5)
    assert dispersion(starts[starts >= 40] - 40, 0.05) == pytest.approx(1.0, abs=0.3)
    assert (law.end_s, law.expected(30.0), law.expected(50.0)) == (60.0, 2000.0, 6000.0)


@pytest.mark.parametrize(("first", "last"), [(0.0, 100.0), (100.0, 10.0), (50.0, 50.0)])
def test_a_ramp_rises_or_falls_evenly_and_stays(first: float, last: float) -> None:
    law = RampArrivals(kind="ramp", from_rate_per_s=first, to_rate_per_s=last, over_s=100.0)
    starts = law.starts(rng(), int(law.expected(140.0)) + 500)
    assert np.all(np.diff(starts) >= 0)
    for begin, end in ((0, 50), (50, 100), (100, 130)):
        expected = law.expected(end) - law.expected(begin)
        assert np.count_nonzero((starts >= begin) & (starts < end)) == pytest.approx(expected, abs=5 * expected**0.5)


def test_the_same_seed_gives_the_same_schedule_and_an_end_is_an_end() -> None:
    steps = {"kind": "steps", "rates_per_s": [50.0, 100.0], "step_s": 2.0}
    workload = parse_workload({**FIELDS, "arrivals": steps}, "here")  # it ends by itself
    starts = draw_arrivals(workload, rng())
    assert starts == draw_arrivals(workload, rng())
    assert 200 < len(starts) < 400
    assert starts[-1] < 4.0
    cut = draw_arrivals(parse_workload({**FIELDS, "arrivals": steps, "duration_s": 1.0}, "here"), rng())
    assert cut == [start for start in starts if start is not None and start < 1.0]
    few = draw_arrivals(parse_workload({**FIELDS, "arrivals": steps, "num_requests": 7}, "here"), rng())
    assert few == starts[:7]


def test_bursts_are_drawn_long_enough() -> None:
    law = {"kind": "gamma", "rate_per_s": 20.0, "burstiness": 0.02}
    workload = parse_workload({**FIELDS, "arrivals": law, "duration_s": 5.0}, "here")
    drawn = [draw_arrivals(workload, np.random.default_rng(seed)) for seed in range(50)]
    assert np.mean([len(starts) for starts in drawn]) == pytest.approx(100, rel=0.5)


@pytest.mark.parametrize(("arrivals", "text", "rate"), [
    ({"kind": "gamma", "rate_per_s": 4.0, "burstiness": 0.5}, "4 req/s gamma 0.5", 4.0),
    ({"kind": "steps", "rates_per_s": [1.0, 3.0], "step_s": 10.0}, "1, 3 req/s, 10 s each", 2.0),
    ({"kind": "ramp", "from_rate_per_s": 1.0, "to_rate_per_s": 9.0, "over_s": 60.0}, "1 to 9 req/s in 60 s", 9.0),
])
def test_they_are_named_and_have_a_rate(arrivals: dict[str, object], text: str, rate: float) -> None:
    workload = parse_workload({**FIELDS, "arrivals": arrivals, "duration_s": 30.0}, "here")
    assert (workload.load_text, workload.rate_per_s, workload.users) == (text, rate, None)


@pytest.mark.parametrize(("arrivals", "complaint"), [
    ({"kind": "gamma", "rate_per_s": 4.0, "burstiness": 0.0}, "arrivals.burstiness: .*equal to 0.001"),
    ({"kind": "ramp", "from_rate_per_s": 1.0, "to_rate_per_s": 2.0, "over_s": 1e300}, "arrivals.over_s: .*got 1e"),
    ({"kind": "steps", "rates_per_s": [], "step_s": 1.0}, "arrivals.rates_per_s: .*at least 1 item"),
    ({"kind": "steps", "rates_per_s": [-1.0], "step_s": 1.0}, r"arrivals.rates_per_s.0: .*got -1"),
    ({"kind": "ramp", "from_rate_per_s": 1.0, "to_rate_per_s": 0.0, "over_s": 1.0}, "arrivals.to_rate_per_s"),
    ({"kind": "ramp", "from_rate_per_s": 1.0, "to_rate_per_s": 2.0, "over_s": 1.0}, "give num_requests, or duration_s"),
])
def test_bad_laws_are_said(arrivals: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_workload({**FIELDS, "arrivals": arrivals}, "here")


def test_no_request_at_all_is_said() -> None:
    steps = {"kind": "steps", "rates_per_s": [0.0], "step_s": 5.0}
    with pytest.raises(NoArrivals, match="no request falls into 5 s of 0 req/s, 5 s each"):
        draw_arrivals(parse_workload({**FIELDS, "arrivals": steps}, "here"), rng())


def test_a_rate_given_on_the_command_line(tmp_path: Path) -> None:
    lines = ['description = "d"', 'prompt = "probe"', "duration_s = 5",
             'prompt_tokens = { law = "fixed", tokens = 8 }', 'output_tokens = { law = "fixed", tokens = 8 }']
    for arrivals, kept in (('{ kind = "gamma", rate_per_s = 4, burstiness = 2 }', "gamma"),
                           ('{ kind = "ramp", from_rate_per_s = 1, to_rate_per_s = 4, over_s = 5 }', "poisson")):
        file = tmp_path / f"{kept}.toml"
        file.write_text("\n".join([*lines, f"arrivals = {arrivals}"]))
        changed = load_workload(file, rate_per_s=7.0)
        assert (changed.arrivals.kind, changed.rate_per_s) == (kept, 7.0)
    constant = ConstantArrivals(kind="constant", rate_per_s=10.0)
    assert constant.starts(rng(), 3).tolist() == [0.0, 0.1, 0.2]


def test_a_trace_gives_times_and_lengths(tmp_path: Path) -> None:
    rows = [(0.0, 20, 9), (0.5, 30, 10), (2.0, 4000, 11), (9.0, 50, 12)]
    (tmp_path / "requests.jsonl").write_text("\n".join(
        json.dumps({"arrival_s": at, "prompt_tokens": prompt, "output_tokens": output}) for at, prompt, output in rows))
    file = tmp_path / "traced.toml"
    file.write_text("\n".join([
        'description = "d"', 'prompt = "probe"', 'trace = "requests.jsonl"', "warmup_requests = 9",
        'prompt_tokens = { law = "trace", max = 100 }', 'output_tokens = { law = "trace" }',
        'arrivals = { kind = "trace", speed = 2 }']))
    workload = load_workload(file)
    facts = EngineFacts("reference", "probe", 4096, capabilities=frozenset({"token_ids", "stream"}))
    requests = plan(workload, 3, facts, PRESETS["tiny"], "x").requests
    assert [request.intended_s for request in requests] == [0.0, 0.25, 1.0, 4.5]
    assert [len(request.request.prompt) for request in requests] == [20, 30, 100, 50]
    assert [request.request.max_tokens for request in requests] == [9, 10, 11, 12]
    assert workload.load_text == "as traced, 2 times as fast"
    assert len(plan(load_workload(file, duration_s=1.0), 3, facts, PRESETS["tiny"], "x").requests) == 2
    assert len(plan(load_workload(file, num_requests=3), 3, facts, PRESETS["tiny"], "x").requests) == 3
    poisson = load_workload(file, rate_per_s=5.0, num_requests=4)  # the lengths of the trace alone
    assert [r.request.max_tokens for r in plan(poisson, 3, facts, PRESETS["tiny"], "x").requests] == [9, 10, 11, 12]
    (tmp_path / "requests.jsonl").write_text('{"prompt_tokens": 9, "output_tokens": 9}\n' * 4)
    with pytest.raises(UsageError, match="has no times: take its lengths"):
        plan(workload, 3, facts, PRESETS["tiny"], "x")
    with pytest.raises(UsageError, match="has 5 requests, its trace only 4"):
        plan(load_workload(file, rate_per_s=5.0, num_requests=5), 3, facts, PRESETS["tiny"], "x")


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"arrivals": {"kind": "trace"}}, "arrivals of a trace, and no trace"),
    ({"prompt_tokens": {"law": "trace"}}, "prompt_tokens of a trace, and no trace"),
    ({"trace": "x.csv"}, "a trace, and nothing taken from it"),
])
def test_a_trace_is_named_where_it_is_used(changes: dict[str, object], complaint: str) -> None:
    poisson = {"kind": "poisson", "rate_per_s": 1.0}
    with pytest.raises(UsageError, match=complaint):
        parse_workload({**FIELDS, "arrivals": poisson, "num_requests": 3, **changes}, "here")
