"""What a simulation is of, drawn or traced, and the command that runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from pabench.errors import EXIT_INTERRUPTED, UsageError
from pabench.traces import Trace
from reference_engine.simulation import Simulator, from_trace, synthetic
from reference_engine.simulation.__main__ import main


def test_drawn_lengths_have_their_mean_and_fit_the_model():
    work = synthetic("gamma:0.25,161", "exp:338", 20_000, 2048)
    assert work.prompt_tokens.mean() == pytest.approx(161, rel=0.05)
    assert work.output_tokens.mean() == pytest.approx(338, rel=0.08)
    assert min(work.prompt_tokens.min(), work.output_tokens.min()) == 1
    assert (work.prompt_tokens + work.output_tokens).max() <= 2048
    assert set(synthetic("fixed:7", "fixed:9", 10, 100).prompt_tokens) == {7}


@pytest.mark.parametrize("text", ["gamma:1", "exp:0", "exp:x", "fixed:", "normal:1,2", "exp:inf", "fixed:1,2"])
def test_an_unknown_distribution_is_refused(text):
    with pytest.raises(UsageError, match="gamma:SHAPE,MEAN"):
        synthetic(text, "exp:3", 10, 100)


def test_a_trace_may_be_cut_hastened_and_saturated():
    trace = Trace("plain", np.array([0.0, 4.0, 6.0]), np.array([1, 2, 3], np.int32), np.array([4, 5, 6], np.int32))
    assert from_trace(trace, rate_scale=2, limit=2).arrival_s.tolist() == [0, 2]
    assert from_trace(trace, saturated=True).arrival_s.tolist() == [0, 0, 0]
    for options in ({"rate_scale": 0}, {"rate_scale": float("nan")}, {"rate_scale": 1e-320}, {"limit": 0}):
        with pytest.raises(UsageError):
            from_trace(trace, **options)


# The command.


@pytest.fixture
def trace_file(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "40,30\n" * 50 + "0,3\n")
    return path


def test_the_command_prints_tables_and_writes_json(trace_file, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "pabench", "simulate", "--trace", trace_file, "--num-slots", "1024", "--out", out]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "50 of 50" in result.stdout
    assert "row left out: the prompt's length" in result.stdout
    report = json.loads(out.read_text())
    assert report["requests"] == {"all": 50, "finished": 50, "refused": {}, "unfinished": 0, "rows_dropped": {
        "the prompt's length is no whole number of tokens from 1 up": 1}}
    assert report["generated_tokens"] == 1500
    assert main(["--trace", str(trace_file), "--out", str(out)]) == 2, "what a file holds is not written over"


@pytest.mark.parametrize(("options", "said"), [
    (["--trace", "none.csv"], "cannot read the trace"),
    (["--synthetic", "exp:3", "exp:3"], "needs --limit"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--rate", "0"], "expected a number above 0"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--rate", "1e-320"], "the last request would come after"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--rate", "1", "--saturated"], "--saturated and --rate contra"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--seed", "-1"], "the seed is -1"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--rate-scale", "10"], "--rate-scale is of --trace"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--format", "azure"], "--format is of --trace"),
    (["--trace", "x.csv", "--rate", "1"], "--rate is of --synthetic"),
    (["--trace", "x.csv", "--seed", "1"], "--seed is of --synthetic"),
    (["--trace", "x.csv", "--rate-scale", "2", "--saturated"], "--saturated and --rate-scale contradict"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--num-slots", "100"], "multiple of --block-size"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--step-law", "x=1"], "no term of a step law"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--out", "no/such/folder"], "in no folder that exists"),
    (["--synthetic", "exp:3", "exp:3", "--limit", "3", "--kv", "contiguous", "--num-blocks", "8"], "--max-model-len"),
])
def test_bad_options_are_one_line_and_exit_2(capsys, options, said):
    assert main(options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_interrupted_simulation_tells_what_it_has(monkeypatch, capsys, tmp_path):
    advance, steps = Simulator.advance, []

    def interrupted(self):
        steps.append(1)
        if len(steps) == 40:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Simulator, "advance", interrupted)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out.json"
    code = main(["--synthetic", "fixed:50", "exp:50", "--limit", "5000", "--out", str(out)])
    assert code == EXIT_INTERRUPTED
    assert len(steps) == 40
    assert signal.getsignal(signal.SIGINT) is before
    assert "(interrupted)" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["interrupted"] is True
    assert report["generated_tokens"] > 0
    assert 0 < report["requests"]["finished"] < 5000
    assert report["requests"]["finished"] + report["requests"]["unfinished"] == 5000
