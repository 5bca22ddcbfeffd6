"""Prefix cache, salts, priorities and preemption, as a client sees them."""

from __future__ import annotations

import asyncio

import pytest

from tests.reference_engine.helpers import assert_exact, rings
from tests.reference_engine.http import exact


def cached(whole):
    return whole["usage"]["prompt_tokens_details"]["cached_tokens"]


def block_model(num_tokens, block_size):
    """Full blocks, and never the last token: it has to be computed."""
    return (num_tokens - 1) // block_size * block_size


@pytest.mark.parametrize("block_size", [4, 8, 16])
def test_cached_tokens_are_those_of_the_block_model(with_server, block_size):
    async def scenario(client):
        for ring in rings(*range(28, 36)):  # prompts that end before, at and behind a block's end
            expected = block_model(len(ring.prompt), block_size)
            cold, warm = [(await client.post(exact(ring, 3)))[1] for _ in "ab"]
            assert (cached(cold), cached(warm)) == (0, expected)
            *_, last = await client.stream(exact(ring, 3, stream_options={"include_usage": True}))
            assert last["usage"] == warm["usage"]
            continuous = {"include_usage": True, "continuous_usage_stats": True}
            chunks = await client.stream(exact(ring, 3, stream_options=continuous))
            assert [(cached(c), c["usage"]["completion_tokens"]) for c in chunks] == [
                (expected, made) for made in (1, 2, 3, 3)]
        twice, other = rings(40, 40, seed=1)
        await client.post(exact(twice, 1))
        _, both = await client.post(exact(twice, 2) | {"prompt": [list(twice.prompt), list(other.prompt)]})
        assert cached(both) == block_model(len(twice.prompt), block_size)  # the sum over the prompts

    with_server(scenario, block_size=block_size, num_blocks=4096 // block_size)


def test_a_salt_isolates_and_a_reset_forgets(with_server):
    async def scenario(client):
        (ring,) = rings(60)
        full = block_model(len(ring.prompt), 16)
        seen = []
        for salt in (None, "a", "b", "a", None, "b"):
            _, whole = await client.post(exact(ring, 70, cache_salt=salt))
            assert_exact(ring, whole["choices"][0]["token_ids"], 70)
            seen.append(cached(whole))
        assert seen == [0, 0, 0, full, full, full]
        assert await client.gauge("prefix_cache_queries_total") == 6 * len(ring.prompt)
        assert await client.gauge("prefix_cache_hits_total") == 3 * full
        assert await client.gauge("kv_cache_idle") > 0
        await client.post({"prompt": [1, 2, 3], "max_tokens": 1})  # looked up too, though it fills no block
        assert await client.gauge("prefix_cache_queries_total") == 6 * len(ring.prompt) + 3
        assert await client.post(b"", "/reset_prefix_cache") == (200, None)
        assert await client.gauge("kv_cache_idle") == 0
        assert cached((await client.post(exact(ring, 3)))[1]) == 0

    with_server(scenario)


@pytest.mark.parametrize("config", [{"prefix_caching": False}, {"kv": "contiguous"}])
def test_without_a_prefix_cache_nothing_is_cached(with_server, config):
    async def scenario(client):
        (ring,) = rings(60)
        assert [cached((await client.post(exact(ring, 3)))[1]) for _ in "ab"] == [0, 0]
        assert (await client.post(b"", "/reset_prefix_cache"))[0] == 200
        assert await client.gauge("prefix_cache_queries_total") == 0

    with_server(scenario, **config)


def test_the_urgent_end_first_in_a_full_engine(with_server):
    async def scenario(client):
        first, *prompts = rings(30, *range(20, 26))
        ended = []

        async def ask(ring, priority):
            status, whole = await client.post(exact(ring, 10, priority=priority))
            assert status == 200
            assert_exact(ring, whole["choices"][0]["token_ids"], 10)
            ended.append(priority)

        busy = asyncio.create_task(client.post(exact(first, 150, priority=-9)))
        while await client.gauge("num_requests_running") < 1:
            await asyncio.sleep(0.002)
        asks = [asyncio.create_task(ask(*pair)) for pair in zip(prompts, [3, 0, 5, -1, 4, 2], strict=True)]
        while await client.gauge("num_requests_waiting") < 6:
            await asyncio.sleep(0.002)
        await asyncio.gather(busy, *asks)
        assert ended == [-1, 0, 2, 3, 4, 5]

    with_server(scenario, policy="priority", max_num_seqs=1)


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_preemptions_are_counted_for_what_they_cost(with_server, preemption):
    async def scenario(client):
        prompts = rings(*range(15, 27))
        answers = await asyncio.gather(*(client.post(exact(ring, 50)) for ring in prompts))
        for ring, (_, whole) in zip(prompts, answers, strict=True):
            assert_exact(ring, whole["choices"][0]["token_ids"], 50)
        assert await client.gauge("num_preemptions_total") > 0
        swaps = [await client.gauge(f"swapped_{way}_blocks_total") for way in ("out", "in")]
        assert all(swaps) if preemption == "swap" else swaps == [0, 0]
        assert (await client.gauge("recomputed_tokens_total") > 0) == (preemption == "recompute")
        assert await client.gauge("swapped_blocks") == await client.gauge("num_requests_swapped") == 0
        await client.wait_idle()

    with_server(scenario, num_blocks=16, block_size=8, preemption=preemption, prefix_caching=False)
