"""One prompt at a time, within a bounded time: what came of it, and how much of it the engine took from its cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pabench.engines.base import Completion, GenerationRequest
from pabench.engines.cleaning import clean
from pabench.engines.client import EngineClient
from pabench.errors import EngineProtocol
from pabench.probe import Codec, check_answer
from pabench.workingset.prompts import Prompt

HitSource = Literal["usage", "counter"]
SOURCE_TEXT = {"usage": "cached_tokens of each answer", "counter": "the engine's counter of prefix hits"}


class OutOfTime(Exception):
    """The time that the measurement may take is used up."""


class Refused(EngineProtocol):
    """A 4xx status: the engine will not."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One answered prompt. Times on the monotonic clock, seconds."""

    prompt_tokens: int               # as the engine counts them, else as they were meant
    cached: float | None             # of them, from the prefix cache; None: it is not told
    ttft_s: float                    # the whole answer's time where it does not stream
    token_times_s: tuple[float, ...]


class Asker:
    """Asks, checks answers where they can be checked, and counts. Raises OutOfTime behind `max_seconds`."""

    def __init__(self, client: EngineClient, max_seconds: float, progress: Callable[[str], None]) -> None:
        self.client, self.progress = client, progress
        self.source: HitSource | None = None
        self.asked = self.wrong = 0
        self._end_s = time.monotonic() + max_seconds

    def check_time(self) -> None:
        """Raise OutOfTime where the time is used up."""
        if time.monotonic() >= self._end_s:
            raise OutOfTime

    async def find_source(self, prompt: Prompt) -> float | None:
        """Find where hits are told, by a prompt sent twice; the hit of the second, None where nothing tells it."""
        await self.visit(prompt)
        before = await self._counter()
        hit = (await self.visit(prompt)).cached
        after = await self._counter()
        if hit is not None:
            self.source = "usage"
        elif before is not None and after is not None:
            self.source, hit = "counter", after - before
        return hit

    async def visit(self, prompt: Prompt, max_tokens: int = 1) -> Visit:
        """Send `prompt`, alone where hits are told by a counter. Raises Refused, EngineProtocol and OutOfTime."""
        before = await self._counter() if self.source == "counter" else None
        sent_s = time.monotonic()
        answer = await self._within_time(GenerationRequest(prompt.sent, max_tokens))
        ended_s = time.monotonic()
        self._check(prompt, answer)
        times = tuple(answer.choices[0].token_times_s) if answer.choices else ()
        told = answer.usage.prompt_tokens if answer.usage is not None else None
        cached: float | None = answer.usage.cached_tokens if answer.usage is not None else None
        if cached is None and self.source == "usage":
            cached = 0  # vLLM leaves the field out of an answer without a hit
        elif self.source == "counter":
            after = await self._counter()
            if before is None or after is None:
                raise EngineProtocol("the counter of prefix hits was there before and is not any more")
            cached = after - before
        return Visit(told or prompt.tokens, cached, (times[0] if times else ended_s) - sent_s, times)

    async def preemptions(self) -> float | None:
        """The engine's own count of them; None where it has none."""
        sample = await self.client.kv_sample()
        return None if sample is None else sample.preemptions

    async def _counter(self) -> float | None:
        sample = await self.client.kv_sample()
        return None if sample is None else sample.prefix_hits

    async def _within_time(self, request: GenerationRequest) -> Completion:
        try:
            async with asyncio.timeout(self._end_s - time.monotonic()):
                answer = await self.client.generate(request)
        except TimeoutError:
            raise OutOfTime from None
        self.asked += 1
        if answer.error is not None or not answer.choices:
            kind = Refused if 400 <= answer.status < 500 else EngineProtocol
            raise kind(f"answered with status {answer.status}: {clean(answer.error or 'no choice')}")
        return answer

    def _check(self, prompt: Prompt, answer: Completion) -> None:
        if prompt.oracle is None:
            return
        ids = answer.choices[0].token_ids or Codec.decode(answer.choices[0].text)
        if not ids or not check_answer(prompt.oracle, ids).ok:
            self.wrong += 1
            self.progress(f"a wrong answer, to a prompt of {prompt.tokens:,} tokens")
