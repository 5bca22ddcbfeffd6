"""A stand-in that decodes at a pace of its own, and notices disconnects and renews its gauges as late as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from aiohttp import web

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.profiles import PROFILES, Profile
from pabench.conformance.session import BackgroundLoop, EngineSession
from pabench.engines import EngineClient
from pabench.engines.base import EngineFacts
from pabench.engines.lmdeploy import LMDeployDialect
from tests.engines.standin import event, serving

SETTLE_S = 0.3
PROFILE = replace(PROFILES["smoke"], settle_s=SETTLE_S, case_timeout_s=20.0)


class PacedDialect(LMDeployDialect):
    """LMDeploy's, whose gauges are the fewest: of requests that run and wait."""

    disconnect_s = 0.0
    cadence_s = 0.0


@dataclass
class Paced:
    """`cadence_s` and `disconnect_s`: as a dialect has them. `deaf`: a request runs on when its client has left."""

    token_s: float = 0.01
    cadence_s: float = 0.0
    disconnect_s: float = 0.0
    deaf: bool = False
    leaks: bool = False   # a request that has ended counts for ever
    running: int = 0
    shown: int = 0        # of `running`, as the gauges have it
    requests: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        count = body["max_tokens"]
        self.requests += 1
        self.running += 1
        sent = 0
        try:
            if not body["stream"]:
                await asyncio.sleep(self.token_s * count)
                sent = count
                return web.json_response({"choices": [{"index": 0, "text": " t1" * count, "finish_reason": "length"}]})
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for sent in range(1, count + 1):
                await asyncio.sleep(self.token_s)
                reason = "length" if sent == count else None
                await response.write(event({"choices": [{"index": 0, "text": " t1", "finish_reason": reason}]}))
            return response
        finally:
            late_s = self.token_s * (count - sent) if self.deaf else self.disconnect_s if sent < count else 0.0
            task = asyncio.get_running_loop().create_task(self._end(late_s))
            self.tasks.add(task)

    async def _end(self, late_s: float) -> None:
        if late_s:
            await asyncio.sleep(late_s)
        if not self.leaks:
            self.running -= 1

    async def metrics(self, _: web.Request) -> web.Response:
        shown = self.shown if self.cadence_s else self.running
        return web.Response(text=f"lmdeploy:num_requests_running {shown}\nlmdeploy:num_requests_waiting 0\n")

    async def renew(self) -> None:
        """The gauges, by the clock."""
        while True:
            self.shown = self.running
            await asyncio.sleep(self.cadence_s or 60.0)

    @asynccontextmanager
    async def served(self):
        routes = {"GET /v1/models": {"object": "list", "data": [{"id": "m", "owned_by": "lmdeploy"}]},
                  "GET /metrics": self.metrics, "POST /v1/completions": self.completions}
        async with serving(routes) as url:
            renewing = asyncio.create_task(self.renew())
            yield url
            renewing.cancel()


@contextmanager
def asked(paced: Paced, profile: Profile = PROFILE, context: int = 256) -> Iterator[EngineUnderTest]:
    """The stand-in as a test holds it; its dialect tells what is so of it."""
    dialect = PacedDialect()
    dialect.cadence_s, dialect.disconnect_s = paced.cadence_s, paced.disconnect_s
    loop = BackgroundLoop()
    serving_it = paced.served()
    url = loop.run(serving_it.__aenter__(), 5.0)
    client = EngineClient(url, dialect, "m", timeout_s=10.0)
    loop.run(client.__aenter__(), 5.0)
    capabilities = frozenset({"sampling", "ignore_eos", "stream", "running_metrics"})
    facts = EngineFacts("lmdeploy", "m", context, capabilities=capabilities)
    session = EngineSession(client, facts, None, profile, 0, loop, paced.cadence_s)
    try:
        yield EngineUnderTest(session, np.random.default_rng(0))
    finally:
        loop.run(serving_it.__aexit__(None, None, None), 5.0)
        session.close()
