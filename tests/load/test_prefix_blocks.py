"""What requests have in common at the beginning of their prompts."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

from pabench.analysis import load_run, summarise
from pabench.engines.base import EngineFacts, GenerationRequest
from pabench.load import run_workload
from pabench.load.planning import plan
from pabench.load.prefix_blocks import counted_block_size, prefix_blocks
from pabench.load.schedule import ScheduledRequest
from pabench.probe import PRESETS
from pabench.stub import StubOptions, StubServer
from pabench.telemetry.vocabulary import KVFacts
from tests.load.support import Examined, workload

FACTS = EngineFacts("reference", "m", 4096, kv=KVFacts(block_size=16, num_blocks=100),
                    capabilities=frozenset({"token_ids", "stream"}))


def test_small_blocks_are_counted_together() -> None:
    assert [counted_block_size(size) for size in (None, 1, 5, 16, 32, 128)] == [16, 16, 20, 16, 32, 128]


def test_groups_have_their_prefix_and_no_more() -> None:
    shared = workload(num_requests=30, shared_prefix={"tokens": 40, "groups": 2, "zipf": 0.0}, prompt="text",
                      prompt_tokens={"law": "fixed", "tokens": 50})
    requests = plan(shared, 1, FACTS, PRESETS["gqa"], "r").requests
    blocks = prefix_blocks(requests, 16)
    assert len(blocks) == 30
    assert {len(chain) for chain in blocks.values()} == {2}  # of 40 tokens two blocks are whole
    of_group = {tuple(request.request.prompt[:32]): blocks[request.index] for request in requests}
    assert len(of_group) == 2
    assert all(blocks[request.index] == of_group[tuple(request.request.prompt[:32])] for request in requests)
    assert not set.intersection(*map(set, of_group.values()))


def test_turns_of_one_session_share_nothing_with_others() -> None:
    chats = workload(num_requests=12, session={"turns": {"law": "fixed", "tokens": 3},
                                               "turn_tokens": {"law": "fixed", "tokens": 20}}, prompt="text",
                     prompt_tokens={"law": "fixed", "tokens": 50})
    assert prefix_blocks(plan(chats, 1, FACTS, PRESETS["gqa"], "r").requests, 16) == {}


def test_words_are_compared_where_an_engine_takes_text() -> None:
    facts = EngineFacts("openai", "m", 4096, capabilities=frozenset({"stream"}))
    shared = workload(num_requests=4, shared_prefix={"tokens": 40, "groups": 1}, prompt="text",
                      prompt_tokens={"law": "fixed", "tokens": 50})
    blocks = prefix_blocks(plan(shared, 1, facts, None, "r").requests, 16)
    assert [len(blocks[index]) for index in range(4)] == [2] * 4
    assert len({tuple(chain) for chain in blocks.values()}) == 1


def test_a_runs_records_tell_them_and_the_summary_counts_them_once(tmp_path: Path) -> None:
    shared = workload(num_requests=12, arrivals={"kind": "closed", "users": 4}, prompt="text",
                      shared_prefix={"tokens": 40, "groups": 1}, prompt_tokens={"law": "fixed", "tokens": 50},
                      output_tokens={"law": "fixed", "tokens": 20})

    async def run() -> None:
        async with StubServer(StubOptions(ttft_ms=20.0, itl_ms=5.0)) as stub:
            await run_workload(Examined(), shared, tmp_path / "run", url=stub.url, label="e")

    asyncio.run(run())
    loaded = load_run(tmp_path / "run")
    assert {len(row) for row in loaded.requests["prefix_blocks"]} == {2}
    summary = summarise(loaded)
    assert summary.live_tokens_mean is not None
    assert summary.live_tokens_once_mean is not None
    saved = summary.live_tokens_mean - summary.live_tokens_once_mean
    assert 16 < saved <= 3 * 32  # of four at a time up to three find the two blocks there


def test_words_of_a_long_text_are_told_as_splitting_tells_them_and_only_once() -> None:
    """60 000 words took two minutes when each block split the prompt from its beginning."""
    words = [f"w{number}" for number in range(60_000)]
    between = itertools.cycle([" ", "  ", "\n", "\t", "\u00a0", "\u2003", "\x1f"])
    text = "".join(itertools.chain.from_iterable(zip(between, words, strict=False)))
    assert text.split() == words
    requests = [ScheduledRequest(number, None, 0.0, GenerationRequest(prompt, 1), len(words), session=number)
                for number, prompt in enumerate((text, " ".join(words)))]
    begin_s = time.process_time()
    blocks = prefix_blocks(requests, 16)
    assert time.process_time() - begin_s < 1
    assert blocks[0] == blocks[1] == list(range(3_750))
