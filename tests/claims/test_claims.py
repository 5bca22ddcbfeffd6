"""Published claims: every row is shown or says why not, and the exact ones are exact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from pabench import claims
from pabench.claims import (
    DIFFERS,
    ERROR,
    NOT_SHOWN,
    REPRODUCED,
    Bench,
    Claim,
    Result,
    claims_markdown,
    load_claims,
    show_claims,
    write_claims,
)
from pabench.errors import UsageError
from reference_engine.scheduling.scheduler import Scheduler


def shown(rows: Sequence[Claim], **options: Any) -> list[Result]:
    results: list[Result] = []
    show_claims(rows, results, **options)
    return results


EXACT = [claim.id for claim in load_claims() if claim.how == "exact" and not claim.trace]


def test_every_row_has_what_shows_it_or_why_not() -> None:
    claims = load_claims()
    assert len({claim.id for claim in claims}) == len(claims) >= 40
    assert all(bool(claim.show) == (claim.how != "none") and (claim.show or claim.why) for claim in claims)


def test_the_worked_examples_are_exact() -> None:
    results = {one.claim.id: one for one in shown(load_claims(EXACT))}
    assert {name for name, one in results.items() if one.verdict != REPRODUCED} == {
        "kv-bytes", "opt-66b-slots", "opt-175b-slots"}
    assert results["kv-bytes"].verdict == DIFFERS
    assert results["three-requests"].ours == "5,288; 224 + 4 + 196 = 424"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match="expected a number above 0"):
        shown(load_claims(["kv-bytes"]), scale=scale)


def test_a_measured_row_runs_at_a_small_scale() -> None:
    (result,) = shown(load_claims(["radix-tree"]), scale=0.05)  # which way it goes is the machine's affair
    assert result.verdict in (REPRODUCED, DIFFERS)
    assert "%" in result.ours


def test_a_published_best_case_that_is_far_from_ours_differs() -> None:
    (result,) = shown(load_claims(["throughput-static"]), scale=0.05)
    assert result.verdict == DIFFERS
    assert "best case" in result.why


def test_bits_that_depend_on_the_batch_are_not_texts_that_do() -> None:
    (result,) = shown(load_claims(["one-text"]), scale=0.05)
    assert result.verdict == NOT_SHOWN
    assert "of 64 rows" in result.ours
    assert "distinct texts in 8 runs: 1" in result.ours


@pytest.mark.parametrize("name", ["fig2-vllm", "fig13-alpaca"])
def test_a_pool_that_never_fills_shows_nothing(name: str) -> None:
    (result,) = shown(load_claims([name]), scale=0.001)
    assert (result.verdict, "--scale" in result.why) == (NOT_SHOWN, True)


def test_a_trace_that_is_not_there_is_asked_for() -> None:
    (result,) = shown(load_claims(["mooncake-lru"]))
    assert (result.verdict, "--traces" in result.why) == (NOT_SHOWN, True)


def test_table_and_file_hold_every_row(tmp_path: Path) -> None:
    results = shown(load_claims(["kv-bytes", "jenga"]))
    told = claims_markdown(results, "pabench claims")
    assert "2 claims: 0 reproduced, 1 differs, 1 not shown, 0 ERROR." in told
    write_claims(results, tmp_path / "claims.json")
    assert [row["verdict"] for row in orjson.loads((tmp_path / "claims.json").read_bytes())["claims"]] == [
        DIFFERS, NOT_SHOWN]


def test_bad_input_is_said() -> None:
    with pytest.raises(UsageError, match="unknown claim nothing"):
        load_claims(["nothing"])
    with pytest.raises(UsageError, match="the scale is 0"):
        shown([], scale=0)
    with pytest.raises(UsageError, match="no folder"):
        shown([], traces=Path("nowhere"))


def test_a_row_that_fails_is_an_error_in_the_table_and_an_interrupt_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_claims(["tail-bound", "kv-bytes", "opt-bytes"])

    def breaks(name: str) -> object:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(claims, "claims_module", breaks)
    assert [(one.verdict, one.why) for one in shown(rows)] == [(ERROR, "RuntimeError: no such luck")] * 3

    def interrupted(place: int, count: int, result: Result) -> None:
        if place == 2:
            raise KeyboardInterrupt

    results: list[Result] = []
    with pytest.raises(KeyboardInterrupt):
        show_claims(rows, results, told=interrupted)
    assert len(results) == 2


def test_the_prefix_caches_cost_includes_hashing_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, slow = Scheduler._extend_keys, 0.05

    def sleeps(self: Scheduler, *args: Any) -> None:
        time.sleep(slow)
        real(self, *args)

    monkeypatch.setattr(Scheduler, "_extend_keys", sleeps)
    spent, _ = claims.claims_module("measured")._cache_seconds(Bench(tmp_path, scale=0.05))
    assert spent >= 8 * slow  # hashed at each of the 8 requests' admissions at least
