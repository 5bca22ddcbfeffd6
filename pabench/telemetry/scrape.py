"""A scraper that runs beside a load: on an absolute schedule, and never in its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from pabench.errors import EngineProtocol, PabenchError
from pabench.telemetry.exposition import ACCEPT
from pabench.telemetry.pages import Paged, PageReader
from pabench.telemetry.vocabulary import COUNTERS, KVSample, MetricFamilies

_TIMEOUT_S = 2.0
_MAX_BYTES = 64 << 20  # of a page: one without end must not fill the memory


def metrics_url(url: str, path: str) -> str:
    """Where `path` lies at an engine's `url`; ":8002/metrics" is `/metrics` on another port of the same host."""
    if not path.startswith(":"):
        return url.rstrip("/") + path
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{path}"


class Scrapable(Paged, Protocol):
    """The part of a dialect that a scraper needs."""

    metric_names: frozenset[str]
    cadence_s: float

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The one KV vocabulary from the metrics at `time_s`."""
        ...


class Scraper:
    """Scrapes an engine's metrics every `interval_s` seconds from `start()` to `stop()`.

    `samples` carry the arrival time of their page on the monotonic clock, in seconds. A scrape that fails is counted
    in `failed`, with its reason in `last_error`, and never raised; one that takes longer than the interval makes the
    ticks that it covers be left out, counted in `missed`. An engine without metrics is left alone.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, dialect: Scrapable, interval_s: float = 0.25
    ) -> None:
        self.samples: list[KVSample] = []
        self.failed = 0
        self.missed = 0
        self.last_error: str | None = None
        self._session = session
        self._url = url.rstrip("/")
        self._dialect = dialect
        self._interval_s = interval_s
        # The info metric never changes and costs as much to parse as all the others.
        names = frozenset(name for name in dialect.metric_names if not name.endswith("_info"))
        self._pages = PageReader(dialect, self._fetch, names)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, with a first scrape: what is asked after this call, every counter shows as an increase."""
        if self._dialect.metrics_path is not None and self._task is None:
            await self._scrape()
            self._task = asyncio.create_task(self._run())

    async def stop(self, *, patient: bool = True) -> list[KVSample]:
        """End, with a last scrape, so that the counters of the whole run are there. Returns `samples`.

        `patient`: where the engine's numbers move late, scrape until they have moved and come to rest, one cadence at
        most.
        """
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait({task})
            until_s = time.monotonic() + (self._dialect.cadence_s if patient else 0.0)
            since, num_failed = max(0, len(self.samples) - 1), self.failed
            await self._scrape()
            while self.failed == num_failed and not _at_rest(self.samples[since:]):
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    break
                await asyncio.sleep(min(self._interval_s, left_s))
                await self._scrape()
        return self.samples

    async def _run(self) -> None:
        start_s = time.monotonic()
        tick = 1
        while True:
            await asyncio.sleep(start_s + tick * self._interval_s - time.monotonic())
            await self._scrape()
            now = (time.monotonic() - start_s) / self._interval_s
            self.missed += max(0, int(now) - tick)
            tick = max(tick, int(now)) + 1

    async def _scrape(self) -> None:
        try:
            metrics = await self._pages.read()
            if metrics is None:
                raise EngineProtocol(f"GET {self._dialect.metrics_path}: there is no such page")
            self.samples.append(self._dialect.kv_sample(metrics, time.monotonic()))
        except (PabenchError, aiohttp.ClientError, OSError, TimeoutError, ValueError, OverflowError) as error:
            self.failed += 1
            self.last_error = str(error) or type(error).__name__

    async def _fetch(self, path: str) -> tuple[int, bytes]:
        async with asyncio.timeout(_TIMEOUT_S):
            async with self._session.get(metrics_url(self._url, path), headers={"Accept": ACCEPT}) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > _MAX_BYTES:
                        raise EngineProtocol(f"GET {path}: the page is longer than {_MAX_BYTES >> 20} MiB")
                return response.status, bytes(body)


def _at_rest(samples: Sequence[KVSample]) -> bool:
    """Whether an engine that nobody asks any more says so, and its counters stood still from one scrape to the next,
    after its numbers had moved: an idle engine that they show from the first on may be that of before.
    """
    if len(samples) < 3 or samples[-1].running or samples[-1].waiting:
        return False
    still = all(getattr(samples[-1], name) == getattr(samples[-2], name) for name in COUNTERS)
    return still and any(replace(one, time_s=0.0) != replace(samples[0], time_s=0.0) for one in samples[1:])
