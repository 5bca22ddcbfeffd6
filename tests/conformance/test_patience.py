"""A slow engine can be asked: nothing bounds its examination but each request's time, and there can be more of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pabench.conformance import session
from pabench.conformance.profiles import PROFILES
from pabench.conformance.runner import run_suite
from pabench.conformance.session import BackgroundLoop, open_session
from pabench.errors import UsageError
from tests.conformance.paced import Paced

FASTER = 50  # the clock of the test


class Slow(Paced):
    """Five seconds a request, by the test's clock."""

    async def completions(self, request):
        self.token_s = 5 / FASTER / (await request.json())["max_tokens"]
        return await super().completions(request)


def test_an_examination_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for = session.wait_for
    loop = BackgroundLoop()
    slow = Slow()
    served = slow.served()
    url = loop.run(served.__aenter__(), 5.0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(session, "_GRACE_S", 0.0)
            patch.setattr(session, "wait_for", lambda future, timeout_s: wait_for(future, timeout_s / FASTER))
            opened = open_session(url, PROFILES["smoke"], 0, dialect_name=None, model=None, probe=None, api_key=None)
        opened.close()
        assert slow.requests * 5 > 60
        assert opened.facts.dialect == "lmdeploy"
    finally:
        loop.run(served.__aexit__(None, None, None), 5.0)
        loop.close()


def test_patience_multiplies_limits_of_time_and_nothing_else() -> None:
    profile, patient = PROFILES["ci"], PROFILES["ci"].patient(4)
    changed = {name for name in profile.__slots__ if getattr(profile, name) != getattr(patient, name)}
    assert changed == {"refusal_s", "settle_s", "request_timeout_s", "case_timeout_s", "run_timeout_s", "patience"}
    assert (patient.request_timeout_s, patient.case_timeout_s, patient.run_timeout_s) == (240, 720, 4800)


@pytest.mark.parametrize("patience", [0.0, -1.0, float("inf"), float("nan")])
def test_patience_is_a_factor(patience: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a factor above 0"):
        run_suite("http://127.0.0.1:1", out=tmp_path / "out", patience=patience)


def test_the_header_tells_of_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = run_suite(impl="reference-paged", out=out, profile="smoke", ids=["alloc/conservation"], patience=2.5,
                     quiet=True)
    assert code == 0
    header = json.loads((out / "verdicts.jsonl").read_text().splitlines()[0])
    assert header["patience"] == 2.5
