"""What engines tell beside their metrics page, or in place of one that is off."""

import asyncio
import json
from collections import Counter
from dataclasses import fields

import aiohttp
import pytest
from aiohttp import web

from pabench.engines import DIALECTS, EngineClient, dialect, examine
from pabench.engines.dialects import recognise
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.scrape import Scraper
from pabench.telemetry.vocabulary import KVFacts, KVSample
from pabench.terminal.engines import show_examination
from tests.engines.pages import LLAMACPP_PAGE, LMDEPLOY_PAGE, SGLANG_PAGE, TGI_PAGE, TRTLLM_PAGE
from tests.engines.standin import run, serving

# As the real one answers, but for the second engine: used and all tokens are whole numbers, usage is rounded.
LOADS = """\
# TYPE sglang_num_running_reqs gauge
sglang_num_running_reqs{dp_rank="0"} 2
sglang_num_running_reqs{dp_rank="1"} 1
sglang_num_waiting_reqs{dp_rank="0"} 4
sglang_num_waiting_reqs{dp_rank="1"} 0
sglang_num_used_tokens{dp_rank="0"} 2048
sglang_num_used_tokens{dp_rank="1"} 16
sglang_max_total_num_tokens{dp_rank="0"} 16384
sglang_max_total_num_tokens{dp_rank="1"} 16384
sglang_token_usage{dp_rank="0"} 0.125
sglang_token_usage{dp_rank="1"} 0.001
sglang_cache_hit_rate{dp_rank="0"} 0.5
"""
SERVER_INFO = {"page_size": 16, "max_total_num_tokens": 16390, "disable_radix_cache": False, "version": "0.5.23"}
# An idle slot still holds what the next prompt may share; the last one does not know its length of answer yet.
SLOTS = [
    {"id": 0, "n_ctx": 4096, "is_processing": True, "n_prompt_tokens": 1000, "next_token": [{"n_decoded": 20}]},
    {"id": 1, "n_ctx": 4096, "is_processing": False, "n_prompt_tokens": 4000, "next_token": [{"n_decoded": 9}]},
    {"id": 2, "n_ctx": 4096, "is_processing": True, "n_prompt_tokens": 4, "next_token": [{"n_decoded": 0}]},
    {"id": 3, "n_ctx": 4096, "is_processing": False},
]
PROPS = {"total_slots": 4, "default_generation_settings": {"n_ctx": 4096}, "model_path": "probe.gguf"}
OFF = (501, '{"error": {"code": 501, "type": "not_supported_error"}}')
HITS = {"prefix_queries": 100, "prefix_hits": 64, "drafted": 8, "accepted": 5}

ENGINES = {  # dialect, pages, what a scrape gives but its time, geometry
    "sglang, metrics off": ("sglang", {"/v1/loads": (200, LOADS), "/server_info": SERVER_INFO},
                            {"running": 3, "waiting": 4, "kv_usage": 2064 / 32768}, KVFacts(16, 1024, True, "paged")),
    "sglang, metrics on": ("sglang", {
        "/metrics": (200, SGLANG_PAGE), "/v1/loads": (200, LOADS),
        "/server_info": {**SERVER_INFO, "disable_radix_cache": True}},
        {"running": 3, "waiting": 4, "kv_usage": 2064 / 32768, "kv_cached": 0.083984375, "preemptions": 0,
         "prefix_queries": 100, "prefix_hits": 64}, KVFacts(16, 1024, False, "paged")),
    "sglang, no loads": ("sglang", {"/metrics": (200, SGLANG_PAGE), "/server_info": SERVER_INFO},
                         {"running": 2, "waiting": 1, "kv_usage": 0.0625, "kv_cached": 0.083984375, "preemptions": 0,
                          "prefix_queries": 100, "prefix_hits": 64}, KVFacts(16, 1024, True, "paged")),
    "llama.cpp": ("llamacpp", {"/metrics": (200, LLAMACPP_PAGE), "/slots": SLOTS, "/props": PROPS},
                  {"running": 3, "waiting": 1, "kv_usage": 0.0625, **HITS}, KVFacts(1, 16384, None, "contiguous")),
    "llama.cpp, metrics off": ("llamacpp", {"/metrics": OFF, "/slots": SLOTS, "/props": PROPS},
                               {"kv_usage": 0.0625}, KVFacts(1, 16384, None, "contiguous")),
    "llama.cpp, no slots": ("llamacpp", {"/metrics": (200, LLAMACPP_PAGE), "/slots": OFF, "/props": PROPS},
                            {"running": 3, "waiting": 1, **HITS}, KVFacts(1, 16384, None, "contiguous")),
    "lmdeploy, PyTorch": ("lmdeploy", {
        "/metrics": (200, LMDEPLOY_PAGE), "/distserve/engine_info": {"block_size": 64, "num_gpu_blocks": 500}},
        {"running": 2, "waiting": 1, "prefix_queries": 100, "prefix_hits": 64}, KVFacts(64, 500, None, "paged")),
    "lmdeploy, TurboMind": ("lmdeploy", {"/metrics": (200, LMDEPLOY_PAGE), "/distserve/engine_info": (500, "")},
                            {"running": 2, "waiting": 1, "prefix_queries": 100, "prefix_hits": 64}, KVFacts()),
}


def server(pages, asked):
    """Routes of an engine with these pages; `asked` counts how often each is."""
    async def page(request):
        asked[request.path] += 1
        answer = pages.get(request.path, (404, ""))
        if isinstance(answer, tuple):
            return web.Response(status=answer[0], text=answer[1])
        return web.json_response(answer)

    models = {"object": "list", "data": [{"id": "m", "owned_by": "x"}]}
    answer = {"choices": [{"index": 0, "text": " t13", "finish_reason": "length"}]}
    return {"GET /v1/models": models, "POST /v1/completions": answer, "GET /{path:.*}": page}


async def scraped(url, name, seconds=0.15):
    async with aiohttp.ClientSession() as session:
        scraper = Scraper(session, url, dialect(name), 0.05)
        await scraper.start()
        await asyncio.sleep(seconds)
        await scraper.stop(patient=False)  # its requests never end
    return scraper


@pytest.mark.parametrize("case", ENGINES)
def test_pages_are_read_into_the_one_vocabulary(case):
    name, pages, sample, kv = ENGINES[case]
    asked = Counter()

    async def main():
        async with serving(server(pages, asked)) as url:
            found = await examine(url, dialect=name, timeout_s=5)
            asked.clear()
            scraper = await scraped(url, name)
            async with EngineClient(url, dialect(name), "m") as client:
                return found, scraper, await client.kv_sample()

    found, scraper, now = run(main())
    assert (found.facts.kv or KVFacts()) == kv
    assert found.facts.version == ("0.5.23" if name == "sglang" else None)
    assert ("capacity" in found.facts.capabilities) == (kv.capacity_tokens is not None)
    assert ("kv_metrics" in found.facts.capabilities) == ("kv_usage" in sample)
    assert len(scraper.samples) > 1
    assert scraper.failed == 0
    for each in (*scraper.samples, now):
        assert each == KVSample(each.time_s, **sample)
    for once in ("/server_info", "/props", "/distserve/engine_info"):
        assert asked[once] == 0


def test_doctor_says_where_it_has_a_number_from_and_which_page_is_not_there():
    _, pages, _, _ = ENGINES["llama.cpp, no slots"]

    async def main():
        async with serving(server(pages, Counter())) as url:
            return await examine(url, dialect="llamacpp", timeout_s=5)

    found = run(main())
    assert any("num_blocks" in line and "/props total_slots" in line for line in found.metrics_found)
    assert any("/slots" in note and "not there" in note for note in found.notes)


@pytest.mark.parametrize(("case", "late", "cannot"), [
    ("sglang, no loads", "up to 30 s late", "–"), ("sglang, metrics on", "at once", "–"),
    ("lmdeploy, PyTorch", "up to 10 s late", "–"),
    ("llama.cpp", "at once", "preemptions, swapped"),
])
def test_doctor_tells_how_late_numbers_are_and_which_there_cannot_be(case, late, cannot, capsys):
    name, pages, _, _ = ENGINES[case]

    async def main():
        async with serving(server(pages, Counter())) as url:
            return await examine(url, dialect=name, timeout_s=5)

    found = run(main())
    show_examination(found, "http://h")
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in capsys.readouterr().out.splitlines()]
    assert any(row[0] == "metrics move" and row[1].startswith(late) for row in rows if row)
    assert ["n/a", cannot] in rows
    assert found.to_json()["cadence_s"] == (0 if late == "at once" else dialect(name).cadence_s)
    assert set(found.to_json()["not_applicable"]) == dialect(name).not_applicable


def test_what_cannot_be_is_told_by_no_page():
    """A quantity that an engine tells is none that it cannot have."""
    for known in DIALECTS.values():
        assert known.not_applicable <= {field.name for field in fields(KVSample)}
    for page in (LLAMACPP_PAGE, TGI_PAGE, TRTLLM_PAGE):
        metrics = parse_exposition(page)
        known = recognise({"data": []}, metrics, {})
        assert known.not_applicable
        assert not any(getattr(known.kv_sample(metrics, 0.0), name) for name in known.not_applicable)


def test_a_page_that_is_not_there_is_asked_for_once():
    asked = Counter()

    async def main():
        async with serving(server({"/metrics": (200, LLAMACPP_PAGE)}, asked)) as url:
            return await scraped(url, "llamacpp", 0.3)

    assert len(run(main()).samples) >= 3
    assert (asked["/slots"], asked["/metrics"] >= 3) == (1, True)


@pytest.mark.parametrize("slots", [
    "", "{}", "[1]", "nothing", "[" * 5000, '{"error": "\\u001b[31m"}',
])
def test_a_page_of_no_form_costs_itself_alone_and_is_told(slots):
    pages = {"/metrics": (200, LLAMACPP_PAGE), "/slots": (200, slots), "/props": (200, slots)}

    async def main():
        async with serving(server(pages, Counter())) as url:
            return await examine(url, dialect="llamacpp", timeout_s=5), await scraped(url, "llamacpp")

    found, scraper = run(main())
    assert found.facts.dialect == "llamacpp"
    assert "running_metrics" in found.facts.capabilities
    assert "kv_metrics" not in found.facts.capabilities
    assert any("/slots" in note and "\x1b" not in note for note in found.notes)
    assert (scraper.failed, bool(scraper.samples)) == (0, True)


@pytest.mark.parametrize("odd", [
    {"n_prompt_tokens": "many"}, {"n_prompt_tokens": -5}, {"n_prompt_tokens": 10**30}, {"n_prompt_tokens": None},
    {"next_token": 7}, {"next_token": [[]]}, {"n_ctx": None},
])
def test_counts_that_are_none_make_use_unknown(odd):
    page = json.dumps([SLOTS[0] | odd, SLOTS[2]]).encode()
    metrics = next(each for each in dialect("llamacpp").extra_pages if each.path == "/slots").read
    try:
        told = metrics(page)
    except ValueError:  # a number that no JSON reader takes
        told = {}
    assert dialect("llamacpp").kv_sample(told, 0.0).kv_usage is None
