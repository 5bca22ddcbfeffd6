"""Prompts of a trace share what its hash ids say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from pabench.analysis import load_run
from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load import run_workload
from pabench.load.planning import plan
from pabench.load.schedule import Schedule
from pabench.load.workload import Workload
from pabench.probe import PRESETS, Ring
from pabench.stub import StubOptions, StubServer
from tests.load.support import CAPABILITIES, Examined, workload

ROWS = [(1100, [7, 8]), (1100, [7, 9]), (600, [7]), (1600, [7, 8, 11]), (520, [12])]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps({"timestamp": 100 * at, "input_length": length, "output_length": 96,
                                        "hash_ids": ids}) + "\n" for at, (length, ids) in enumerate(ROWS)))
    return path


def traced(trace: Path, **more: object) -> Workload:
    return workload(**{"trace": str(trace), "prompt_tokens": {"law": "trace"}, "output_tokens": {"law": "trace"},
                       "arrivals": {"kind": "trace"}, "scale": 1 / 16, "num_requests": 5} | more)


def planned(load: Workload, preset: str | None = "tiny", seed: int = 0) -> Schedule:
    facts = EngineFacts("openai", "stub", 512, capabilities=CAPABILITIES)
    return plan(load, seed, facts, None if preset is None else PRESETS[preset], "p")


def common(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("preset", ["tiny", None])
def test_equal_ids_are_equal_tokens_and_no_more(trace: Path, preset: str | None) -> None:
    load = traced(trace) if preset else traced(trace, prompt="text")
    prompts = []
    for one in planned(load, preset).requests:
        if isinstance(one.oracle, Ring):
            prompts.append(one.oracle.prompt[2:])  # behind SEP and the salt
        else:
            assert isinstance(one.request.prompt, str)
            prompts.append(tuple(one.request.prompt.split()))
    block = 32  # 512 / 16
    for i, (_, ids) in enumerate(ROWS):
        for j, (_, others) in enumerate(ROWS[:i]):
            alike = common(tuple(ids), tuple(others)) * block
            assert alike <= common(prompts[i], prompts[j]) <= alike + 4
    assert [one.prompt_tokens for one in planned(load, preset).requests] == [69, 69, 38, 100, 32]


def test_rings_share_one_salt_and_are_planned_from_the_seed(trace: Path) -> None:
    rings = [one.oracle for one in planned(traced(trace)).requests]
    assert len({ring.salt for ring in rings if isinstance(ring, Ring)}) == 1
    assert rings == [one.oracle for one in planned(traced(trace)).requests]
    assert rings != [one.oracle for one in planned(traced(trace), seed=1).requests]


def test_answers_behind_shared_blocks_are_verified(trace: Path, tmp_path: Path) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=1.0, itl_ms=0.5)) as server:
            await run_workload(Examined(), traced(trace), tmp_path / "run", url=server.url, label="stub")

    asyncio.run(go())
    requests = load_run(tmp_path / "run").requests
    assert requests["outcome"].tolist() == ["ok"] * 5
    assert requests["verified_tokens"].sum() == 5 * 6


def test_rows_that_are_left_out_are_told_and_counted(trace: Path, tmp_path: Path) -> None:
    with trace.open("a") as file:
        for length, output in ((0, 9), (0, 9), (520, -1)):
            file.write(json.dumps({"timestamp": 0, "input_length": length, "output_length": output, "hash_ids": []})
                       + "\n")

    async def go() -> list[str]:
        async with StubServer(StubOptions(ttft_ms=1.0, itl_ms=0.5)) as server:
            return (await run_workload(Examined(), traced(trace, num_requests=4), tmp_path / "run", url=server.url,
                                       label="stub")).notes

    notes = asyncio.run(go())
    assert notes[:2] == [
        "3 of 8 rows of the trace left out, which make no sense: the prompt's length is no whole number of tokens from "
        "1 up (2); the output's length is no whole number of tokens from 1 up (1)",
        "the first 4 of the trace's 5 requests are used"]


def test_what_cannot_be_is_said(trace: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves nothing of the 512 tokens a block"):
        planned(traced(trace, scale=0.0005))
    with pytest.raises(UsageError, match=r"num_requests is 6, and the trace .* has only 5 requests"):
        planned(traced(trace, num_requests=6))
    with pytest.raises(UsageError, match="says itself what they share"):
        traced(trace, shared_prefix={"tokens": 8})
