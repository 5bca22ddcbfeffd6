"""Beams as a workload: what of them is certain, and what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.analysis import load_run, summarise
from pabench.engines.base import Choice, EngineFacts
from pabench.engines.doctor import examine
from pabench.errors import UsageError
from pabench.load import run_loop, run_workload
from pabench.load.planning import plan
from pabench.load.verify import verify_beams
from pabench.probe import PRESETS, Fork, Ring
from tests.load.support import CAPABILITIES, workload

RING = Ring((300, 301, 302), 16)
FORK = Fork(300, ((302, 304), (303, 305)), 16)
FIRST, SECOND = [302, 304, 300, 302, 304, 300], [303, 305, 300, 303, 305, 300]
FACTS = EngineFacts("reference", "m", 512, capabilities=CAPABILITIES | {"beam"})


def found(oracle: Ring | Fork, *beams: list[int]) -> tuple[int, int, int | None]:
    verification = verify_beams(oracle, [Choice(at, token_ids=beam) for at, beam in enumerate(beams)])
    wrong = verification.wrong_choice
    return verification.verified, verification.wrong, None if wrong is None else wrong.index


@pytest.mark.parametrize(("beams", "verified", "wrong", "which"), [
    ((FIRST, SECOND), 12, 0, None),
    ((SECOND, FIRST), 12, 0, None),
    ((FIRST, SECOND, [9, 9, 9, 9, 9, 9]), 12, 0, None),              # the third is not known
    ((FIRST, FIRST), 6, 6, 1),                                       # one branch twice
    ((FIRST, [9, *SECOND[1:]]), 6, 6, 1),
    (([302, 304, 300, 303, 305, 300], SECOND), 9, 3, 0),             # it changes its branch at the fork
    ((FIRST, [303, 305, 300, 303, 304, 300]), 10, 2, 1),             # it reads the other's slot
    (([], []), 0, 0, None),                                          # a length error, not a wrong token
])
def test_the_two_best_beams_of_a_fork_are_its_branches(
    beams: tuple[list[int], ...], verified: int, wrong: int, which: int | None
) -> None:
    assert found(FORK, *beams) == (verified, wrong, which)


def test_the_best_beam_of_a_ring_is_the_ring() -> None:
    assert found(RING, RING.expected(5), [9, 9, 9, 9, 9]) == (5, 0, None)
    assert found(RING, [301, 302, 9, 301, 302], RING.expected(5)) == (2, 3, 0)


def test_what_is_asked() -> None:
    load = workload(prompt="fork", beam_width=3, prompt_tokens={"law": "fixed", "tokens": 31})
    for one in plan(load, 0, FACTS, PRESETS["tiny"], "p").requests:
        request = one.request
        assert (request.beam_width, request.n, request.stream, request.temperature) == (3, 3, False, 0.0)


@pytest.mark.parametrize(("fields", "message"), [
    ({"n": 2}, "n with beam_width"), ({"temperature": 0.5}, "temperature with beam_width"),
    ({"cancel_share": 0.5}, "cancel_share with beam_width"), ({"beam_width": 1}, "beam_width: .*got 1"),
])
def test_what_beams_exclude(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workload(**{"prompt": "fork", "beam_width": 2, **fields})


def test_what_an_engine_or_a_probe_cannot_do_is_said_before() -> None:
    load = workload(prompt="fork", beam_width=2)
    with pytest.raises(UsageError, match="needs beam, which dialect 'openai'"):
        plan(load, 0, EngineFacts("openai", "m", 512, capabilities=CAPABILITIES), PRESETS["tiny"], "p")
    with pytest.raises(UsageError, match="probe 'soft' is soft"):
        plan(load, 0, FACTS, PRESETS["soft"], "p")
    with pytest.raises(UsageError, match="probe 'window' sees no further than 64 tokens"):
        plan(load, 0, FACTS, PRESETS["window"], "p")


@pytest.mark.parametrize(("prompt", "width"), [("fork", 2), ("fork", 4), ("probe", 3)])
def test_on_the_reference_engine(url: str, tmp_path: Path, prompt: str, width: int) -> None:
    load = workload(prompt=prompt, beam_width=width, prompt_tokens={"law": "fixed", "tokens": 29},
                    output_tokens={"law": "fixed", "tokens": 40})
    manifest = run_loop(run_workload(run_loop(examine(url)), load, tmp_path / "run", url=url, label="r"))
    assert manifest.flawless
    run = load_run(tmp_path / "run")
    assert set(run.requests["verified_tokens"]) == {80 if prompt == "fork" else 40}
    assert set(run.requests["output_tokens"]) == {40 * width}
    assert summarise(run).wrong_tokens == 0
    assert manifest.window_s is not None  # of answers that came whole
