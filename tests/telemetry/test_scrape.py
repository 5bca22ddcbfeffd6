"""The scraper beside a run: on time, counting what fails, never in the way."""

import asyncio
import time
from itertools import pairwise

import aiohttp
import pytest
from aiohttp import web

from pabench.engines import dialect
from pabench.engines.lmdeploy import LMDeployDialect
from pabench.engines.triton import TritonDialect
from pabench.telemetry import scrape
from pabench.telemetry.scrape import Scraper


class Pages:
    """An engine that answers /metrics with `answer(number)`: (status, text), after `delay_s`."""

    def __init__(self, answer, delay_s=0.0):
        self.answer, self.delay_s, self.number, self.accepted = answer, delay_s, 0, []

    async def serve(self, request):
        self.number += 1
        self.accepted.append(request.headers.get("Accept"))
        status, text = self.answer(self.number)
        await asyncio.sleep(self.delay_s)
        return web.Response(status=status, text=text)


def scraped(pages, seconds, name="vllm", interval_s=0.05, patient=True):
    async def run():
        app = web.Application()
        app.router.add_get("/metrics", pages.serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with aiohttp.ClientSession() as session:
                scraper = Scraper(session, url, dialect(name), interval_s)
                await scraper.start()
                await asyncio.sleep(seconds)
                pages.stopped_at = pages.number
                await scraper.stop(patient=patient)
            return scraper
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_samples_come_on_schedule_with_a_last_one_at_the_end():
    before = time.monotonic()
    pages = Pages(lambda number: (200, f"vllm:num_requests_running {number}\n"))
    scraper = scraped(pages, 0.32)
    times = [sample.time_s for sample in scraper.samples]
    assert 6 <= len(times) + scraper.missed <= 9
    assert all(before <= a < b <= time.monotonic() for a, b in pairwise(times))
    assert scraper.samples[-1].running == pages.number
    assert scraper.failed == 0
    assert set(pages.accepted) == {"text/plain; version=0.0.4"}


def test_failures_are_counted_and_not_raised():
    answers = {1: (500, "down"), 2: (200, "<html>"), 3: (200, "vllm:num_requests_running 1\n")}
    scraper = scraped(Pages(lambda number: answers[(number - 1) % 3 + 1]), 0.3)
    assert scraper.failed >= 2
    assert scraper.samples
    assert scraper.last_error


def test_a_slow_page_makes_ticks_be_left_out_rather_than_pile_up():
    pages = Pages(lambda _: (200, "vllm:num_requests_running 1\n"), delay_s=0.12)
    scraper = scraped(pages, 0.4)
    assert scraper.missed >= 2
    assert pages.number <= 6


def test_an_engine_that_is_not_there_only_counts():
    async def run():
        async with aiohttp.ClientSession() as session:
            scraper = Scraper(session, "http://127.0.0.1:9", dialect("vllm"), 0.05)
            await scraper.start()
            await asyncio.sleep(0.12)
            return await scraper.stop(), scraper.failed

    samples, failed = asyncio.run(run())
    assert samples == []
    assert failed >= 2


def lmdeploy_page(running, counted):
    return (200, f"lmdeploy:num_requests_running {running}\nlmdeploy:num_requests_waiting 0\n"
                 f"lmdeploy:prompt_tokens_total {counted}\n")


@pytest.mark.parametrize("late", [
    lambda behind: lmdeploy_page(2 if behind < 5 else 0, 100),      # the gauges are late
    lambda behind: lmdeploy_page(0, 100 + min(max(behind, 0), 5)),  # the counters are
])
def test_the_last_scrape_waits_for_numbers_that_come_late(late):
    pages = Pages(lambda number: late(number - getattr(pages, "stopped_at", number + 1)))
    scraper = scraped(pages, 0.1, "lmdeploy")
    assert pages.number - pages.stopped_at in (5, 6, 7)
    assert scraper.samples[-1].running == 0
    assert scraper.samples[-1].prefix_queries == scraper.samples[-2].prefix_queries


def test_it_waits_for_one_cadence_at_most(monkeypatch):
    monkeypatch.setattr(LMDeployDialect, "cadence_s", 0.3)
    pages = Pages(lambda number: lmdeploy_page(1, number))  # somebody else asks it, too
    began = time.monotonic()
    scraped(pages, 0.1, "lmdeploy")
    assert pages.number - pages.stopped_at >= 3
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(("name", "patient"), [("vllm", True), ("lmdeploy", False)])
def test_one_last_scrape_is_enough_where_numbers_move_at_once_or_nobody_waits(name, patient):
    pages = Pages(lambda number: (200, f"{name}:num_requests_running {number}\n"))
    scraped(pages, 0.1, name, patient=patient)
    assert pages.number == pages.stopped_at + 1


def test_an_engine_that_has_died_is_not_waited_for():
    pages = Pages(lambda number: (500, "dead") if hasattr(pages, "stopped_at") else lmdeploy_page(1, 1))
    scraped(pages, 0.1, "lmdeploy")
    assert pages.number == pages.stopped_at + 1


@pytest.mark.parametrize("name", ["transformers", "openai"])
def test_an_engine_without_metrics_is_left_alone(name):
    pages = Pages(lambda _: (200, "x 1\n"))
    scraper = scraped(pages, 0.1, name)
    assert (pages.number, scraper.samples, scraper.failed) == (0, [], 0)


def test_a_slow_page_is_read_before_what_is_asked_after_the_start():
    async def run():
        pages = Pages(lambda number: (200, f"vllm:num_requests_running {number}\n"), delay_s=0.15)
        app = web.Application()
        app.router.add_get("/metrics", pages.serve)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            scraper = Scraper(session, f"http://127.0.0.1:{runner.addresses[0][1]}", dialect("vllm"), 0.05)
            await scraper.start()
            before = [sample.running for sample in scraper.samples]
            await scraper.stop()
        await runner.cleanup()
        return before

    assert asyncio.run(run()) == [1]


def too_large(name, label):
    return "".join(f'{name}{{engine="{number}",{label}}} 1e308\n' for number in range(2))


@pytest.mark.parametrize(("dialect_name", "page"), [
    ("vllm", too_large("vllm:num_requests_running", 'model="m"')),
    # Its dialect adds them up by itself.
    ("triton", too_large("nv_trt_llm_request_metrics", 'request_type="active"')),
])
def test_numbers_that_count_nothing_are_left_out(dialect_name, page, monkeypatch):
    """At the start, and beside the run: it goes on."""
    monkeypatch.setattr(TritonDialect, "metrics_path", "/metrics")
    scraper = scraped(Pages(lambda number: (200, page)), 0.2, dialect_name)
    assert {sample.running for sample in scraper.samples} == {None}
    assert scraper.failed == 0


def test_a_page_without_end_is_a_failed_scrape(monkeypatch):
    monkeypatch.setattr(scrape, "_MAX_BYTES", 1 << 20)
    long = "# " + "x" * (1 << 20) + "\n"
    scraper = scraped(Pages(lambda number: (200, "vllm:num_requests_running 1\n" + (long if number == 1 else ""))), 0.1)
    assert scraper.failed == 1
    assert scraper.last_error == "GET /metrics: the page is longer than 1 MiB"
    assert scraper.samples
