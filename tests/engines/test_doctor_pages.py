"""Doctor's pages: what they tell, and that none of them is needed."""

import asyncio
import json

import pytest
from aiohttp import web

from pabench.errors import EngineProtocol
from tests.engines.standin import examined_routes, models, streaming


def test_a_page_without_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr("pabench.engines.client._MAX_BYTES", 1 << 20)
    routes = {"GET /v1/models": streaming([b"x" * (1 << 18)] * 40)}
    with pytest.raises(EngineProtocol, match=r"/v1/models at .*: the answer is longer than 1 MiB"):
        examined_routes(routes)


def test_a_metric_that_needs_another_is_told_with_what_it_tells():
    page = "sglang:page_size 16\nsglang:num_pages 100\nsglang:token_usage 0.5\n"
    found = examined_routes({"GET /v1/models": models(owned_by="sglang"), "GET /metrics": (200, page),
                             "POST /v1/completions": (400, "")})
    assert found.metrics_found == (
        "num_blocks: sglang:num_pages", "block_size, num_blocks, kv_mode: sglang:page_size",
        "kv_usage: sglang:token_usage")


@pytest.mark.parametrize("path", ["/metrics", "/version"])
def test_a_page_that_hangs_costs_itself_alone(path):
    async def hang(request):
        await asyncio.sleep(60)

    routes = {"GET /v1/models": models(owned_by="vllm"), "GET /metrics": (200, "vllm:num_requests_running 1\n"),
              "GET /version": {"version": "1"}, "POST /v1/completions": (400, "")} | {f"GET {path}": hang}

    found = examined_routes(routes, timeout_s=1)
    assert found.facts.dialect == "vllm"
    assert found.facts.version == ("1" if path == "/metrics" else None)
    assert any("no metrics: GET /metrics" in note for note in found.notes) == (path == "/metrics")


def test_what_an_engine_tells_only_once_a_request_has_ended_is_found():
    """As trtllm-serve's gauges, and mistral.rs's."""
    done = []

    async def page(request):
        gauges = 'trtllm_kv_cache_max_blocks 512\ntrtllm_kv_cache_tokens_per_block 32\n' if done else ""
        return web.Response(text="trtllm_num_requests_running 0\n" + gauges)

    async def complete(request):
        done.append(1)
        return web.json_response({"error": "no"}, status=400)

    found = examined_routes({"GET /v1/models": models(owned_by="tensorrt_llm"), "GET /prometheus/metrics": page,
                             "POST /v1/completions": complete})
    assert (found.facts.kv.block_size, found.facts.kv.num_blocks) == (32, 512)


def test_metrics_and_facts_of_vllm():
    page = ('vllm:kv_cache_usage_perc{engine="0"} 0.0\nvllm:num_requests_running{engine="0"} 0\n'
            'vllm:num_requests_waiting{engine="0"} 0\n'
            'vllm:cache_config_info{block_size="32",num_gpu_blocks="160",enable_prefix_caching="True"} 1\n')
    found = examined_routes({
        "GET /v1/models": models(owned_by="vllm", max_model_len=2048), "GET /metrics": (200, page),
        "GET /version": {"version": "0.32.0\x1b[2J"}, "POST /v1/completions": (400, '{"error": {"message": "no"}}')})
    assert found.facts.kv.capacity_tokens == 159 * 32
    assert found.facts.version == "0.32.0 [2J"
    assert found.facts.capabilities == {"kv_metrics", "running_metrics", "prefix_cache", "capacity", "context_length"}
    assert set(found.metrics_found) == {
        "block_size, num_blocks, prefix_caching, kv_mode: vllm:cache_config_info", "kv_usage: vllm:kv_cache_usage_perc",
        "running: vllm:num_requests_running", "waiting: vllm:num_requests_waiting"}
    assert sum("answered with status 400: no" in note for note in found.notes) == 4
    told = json.loads(json.dumps(found.to_json()))
    assert (told["facts"]["kv"]["capacity_tokens"], told["probe"]) == (159 * 32, None)
