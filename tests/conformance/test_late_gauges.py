"""Gauges that are renewed by the clock, and disconnects that are noticed late: no sound engine fails for them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from pabench.conformance.failure import CaseFailed
from pabench.conformance.gauges import all_given_back, idle_again
from pabench.engines import dialect
from pabench.engines.base import GenerationRequest
from pabench.telemetry.vocabulary import KVSample
from tests.conformance.paced import PROFILE, SETTLE_S, Paced, asked
from tests.conformance.test_sizes import ABORTS, suite_file

CADENCE_S = 1.0
GAUGES = suite_file("test_gauges")
LONG = GenerationRequest("t300 t301", 120)  # 1.2 s: the gauges show it


def test_dialects_tell_how_late_they_notice_a_disconnect() -> None:
    late = {name: dialect(name).disconnect_s for name in ("sglang", "sglang-generate", "tensorrt-llm", "triton")}
    assert late == {"sglang": 2.0, "sglang-generate": 2.0, "tensorrt-llm": 1.0, "triton": 0.1}
    assert dialect("vllm").disconnect_s == dialect("reference").disconnect_s == 0.0


def test_dialects_tell_how_late_their_gauges_are() -> None:
    late = {name: dialect(name).cadence_s for name in ("lmdeploy", "sglang", "sglang-generate", "triton", "vllm")}
    assert late == {"lmdeploy": 10.0, "sglang": 30.0, "sglang-generate": 30.0, "triton": 0.1, "vllm": 0.0}


def test_an_engine_whose_gauges_are_late_is_given_a_cadence_more() -> None:
    with asked(Paced(cadence_s=CADENCE_S)) as engine:
        assert engine.settle_s == SETTLE_S + CADENCE_S
        left_s = engine.time_left_s
        with all_given_back(engine, "x"):
            engine.generate([LONG])
        # What was spent on waiting for the clock is not the case's.
        assert left_s - engine.time_left_s < 2.0
        idle_again(engine, "x")


def test_gauges_from_before_the_leak_prove_nothing() -> None:
    """It is over between two renewals: what is shown at once is an idle engine, that of before."""
    with asked(Paced(cadence_s=CADENCE_S, leaks=True)) as engine:
        with pytest.raises(CaseFailed, match=r"idle again within 1\.3 s"), all_given_back(engine, "x"):
            engine.generate([GenerationRequest("t300", 1)])
        with pytest.raises(CaseFailed, match="idle after all have ended"):
            idle_again(engine, "x")


def test_an_engine_with_a_clock_of_its_own_is_not_made_to_step() -> None:
    """Its renewals would tell of the request that was to make it step."""
    paced = Paced(cadence_s=CADENCE_S)
    with asked(paced) as engine:
        idle_again(engine, "x")
    assert paced.requests == 0


def test_load_that_the_gauges_cannot_show_in_time_is_not_asked_of_them() -> None:
    profile = replace(PROFILE, case_timeout_s=2.0)
    with (
        asked(Paced(cadence_s=3.0, token_s=0.002), profile) as engine,
        pytest.raises(pytest.skip.Exception, match=r"the gauges move each 3 s"),
    ):
        GAUGES.test_gauges_in_range(engine)


def test_a_suite_that_is_kept_waiting_does_not_blame_the_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to look when all is over: the gauges of an engine at rest."""
    profile = replace(PROFILE, case_timeout_s=2.0)
    monkeypatch.setattr(GAUGES, "sampled", lambda _: KVSample(0.0, running=0, waiting=0, kv_usage=0.0))
    with asked(Paced(), profile) as engine, pytest.raises(CaseFailed, match="all without running requests"):
        GAUGES.test_gauges_in_range(engine)
    monkeypatch.setattr(GAUGES, "_ON_TIME_S", 0.0)
    with asked(Paced(), profile) as engine, pytest.raises(pytest.skip.Exception, match=r"0 of \d+ samples .* on time"):
        GAUGES.test_gauges_in_range(engine)


def test_a_late_disconnect_is_waited_for() -> None:
    with asked(Paced(disconnect_s=0.6)) as engine:
        ABORTS.test_abort_frees(engine, 1)
        assert engine.note.startswith("free after 0.")


@pytest.mark.parametrize(("disconnect_s", "cadence_s"), [(0.0, 0.0), (0.6, 0.0), (0.2, 0.6)])
def test_who_runs_on_is_found_all_the_same(disconnect_s: float, cadence_s: float) -> None:
    paced = Paced(disconnect_s=disconnect_s, cadence_s=cadence_s, deaf=True)
    with asked(paced) as engine, pytest.raises(CaseFailed, match=r"idle again within .* got 1 running"):
        ABORTS.test_abort_frees(engine, 1)


def test_what_would_have_ended_soon_tells_nothing() -> None:
    """It has 0.5 s left, and a sound engine needs more to notice."""
    with asked(Paced(disconnect_s=0.7, token_s=0.0025)) as engine:
        start = time.monotonic()
        with pytest.raises(pytest.skip.Exception, match=r"may take 0\.7 s to notice that a client has left"):
            ABORTS.test_abort_frees(engine, 1)
        assert time.monotonic() - start < 3


def test_the_noise_is_measured_before_an_abort_can_spoil_what_it_is_measured_on() -> None:
    with asked(Paced(token_s=0.001)) as engine:
        engine.abort(GenerationRequest("t1 t2 t3", 8), 2)
        engine.abort(GenerationRequest("t1 t2 t3", 8), 2)
        names = [exchange.name for exchange in engine.exchanges]
    assert names[:4] == ["noise"] * 4
    assert names[4:] == ["", ""]
