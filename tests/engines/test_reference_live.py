"""The reference engine as a process, through its dialect: what it tells, and that the ring comes back."""

import asyncio
import sys
from dataclasses import replace

import aiohttp
import numpy as np
import pytest

from pabench.engines import EngineClient, EngineProcess, dialect, examine
from pabench.engines.base import GenerationRequest
from pabench.probe import PRESETS, check_answer, draw_fork, draw_rings
from pabench.telemetry.scrape import Scraper
from tests.engines.standin import run

BLOCK_SIZE, NUM_BLOCKS = 16, 64


@pytest.fixture(scope="module", params=["paged", "contiguous"])
def engine(request, tiny_probe, tmp_path_factory):
    command = [
        sys.executable, "-m", "reference_engine", "--model", str(tiny_probe), "--kv", request.param,
        "--block-size", str(BLOCK_SIZE), "--num-blocks", str(NUM_BLOCKS), "--max-num-seqs", "8",
        "--max-model-len", "256", "--host", "127.0.0.1", "--port", "{port}", "--dtype", "float32",
        "--served-model-name", "probe"]
    log = tmp_path_factory.mktemp("reference") / "engine.log"
    environment = {"OMP_NUM_THREADS": "1"}
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=log, env=environment, ready_timeout_s=60) as process:
        process.kv_mode = request.param
        yield process


def test_doctor_finds_what_it_was_started_with(engine, tiny_probe):
    found = run(examine(engine.url))
    facts = found.facts
    assert (facts.dialect, facts.model, facts.max_context_tokens) == ("reference", "probe", 256)
    assert (facts.kv.block_size, facts.kv.num_blocks, facts.kv.kv_mode) == (BLOCK_SIZE, NUM_BLOCKS, engine.kv_mode)
    assert {"token_ids", "n", "sampling", "logprobs", "ignore_eos", "stream", "usage", "kv_metrics", "running_metrics",
            "capacity", "context_length", "cached_tokens", "prompt_logprobs", "cache_salt", "chat", "beam",
            "request_id", "stop_token_ids"} <= facts.capabilities
    assert ("prefix_cache" in facts.capabilities) is (engine.kv_mode == "paged")
    assert not {"speculation", "priority"} & facts.capabilities  # it serves in the order of arrival
    assert found.probe == PRESETS["tiny"]
    assert facts.model_root == str(tiny_probe)
    assert any(line.startswith("token_states_tokens: ") for line in found.metrics_found)


def test_rings_forks_and_telemetry(engine):
    rings = draw_rings(PRESETS["tiny"], np.random.default_rng(3), [30] * 6)
    fork = draw_fork(PRESETS["tiny"], np.random.default_rng(4), 5)

    async def main():
        known = dialect("reference")
        async with EngineClient(engine.url, known, "probe") as client, aiohttp.ClientSession() as session:
            scraper = Scraper(session, engine.url, known, 0.05)
            await scraper.start()
            answers = await asyncio.gather(*(client.generate(GenerationRequest(ring.prompt, 60)) for ring in rings))
            forked = await client.generate(GenerationRequest(fork.prompt, 20, n=3, temperature=1.0, seed=1))
            return answers, forked, await scraper.stop(), scraper.failed

    answers, forked, samples, failed = run(main())
    for ring, answer in zip(rings, answers, strict=True):
        (choice,) = answer.choices
        assert check_answer(ring, choice.token_ids).verified == 60
        assert (len(choice.token_times_s), answer.usage.completion_tokens, answer.finish_events) == (60, 60, 1)
    assert [check_answer(fork, choice.token_ids).verified for choice in forked.choices] == [20] * 3
    assert failed == 0
    assert max(sample.kv_usage for sample in samples) > 0.2
    assert max(sample.token_states_tokens for sample in samples) > 100
    assert samples[-1].running == 0


def test_whole_and_streamed_answers_agree(engine):
    (ring,) = draw_rings(PRESETS["tiny"], np.random.default_rng(5), [17])

    async def main():
        async with EngineClient(engine.url, dialect("reference"), "probe") as client:
            asked = (GenerationRequest(ring.prompt, 40, stream=stream) for stream in (True, False))
            return [await client.generate(request) for request in asked]

    streamed, whole = run(main())
    assert streamed.choices[0].token_ids == whole.choices[0].token_ids == ring.expected(40)
    cached = (len(ring.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE if engine.kv_mode == "paged" else 0
    assert (streamed.usage.cached_tokens, whole.usage.cached_tokens) == (0, cached)
    assert replace(streamed.usage, cached_tokens=None) == replace(whole.usage, cached_tokens=None)
