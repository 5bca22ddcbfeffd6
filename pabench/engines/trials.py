"""What an engine can do, found by trying. Each trial is one or a few small requests, bounded in time.

A trial yields capabilities; what it could not show becomes a note. An engine lacks what it refuses (a 4xx status), and
what a sound answer does not show. One that fails on it (a 5xx status, a broken or empty answer, none at all) and whose
dialect has it is broken, not unable: the capability stays, so that the fault is found where it is asked for. Only an
engine that leaves the first request without any answer, or dies, is an error.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import cast

from pabench.engines.base import Choice, Completion, GenerationRequest
from pabench.engines.cleaning import clean
from pabench.engines.client import EngineClient
from pabench.engines.wording import plain
from pabench.errors import EngineDied, EngineProtocol, EngineTimeout, UsageError
from pabench.probe import EOS, SEP, Codec, Fork, Ring, check_answer

# Every preset has these ids: salts start at 16, and ids from 2048 on are ring tokens of vocabularies of 4096 and more.
_SALT = 16
_FIRST = 2048
RING = Ring(tuple(range(_FIRST, _FIRST + 12)), _SALT)
_LONG = 300  # tokens: several blocks of any usual size
FORK = Fork(_FIRST, ((_FIRST + 2, _FIRST + 4), (_FIRST + 3, _FIRST + 5)), _SALT)
# The probe answers this with EOS, x, EOS, x …: an engine that does not ignore EOS ends after one token.
_SAYS_EOS = (SEP, _SALT, _FIRST, EOS, _FIRST)
_PLAIN_TEXT = "One two three four five six seven eight nine ten"
NUM_TOKENS = 16
_PASSING = (429, 500, 502, 503, 504)  # statuses
_ATTEMPTS, _PAUSE_S = 3, 1.0  # of the first answer, while there are such
_SEEDS = range(10)  # both branches of a fork show but once in 512


class _Refused(EngineProtocol):
    """A 4xx status: the engine will not."""


class _NotNow(EngineProtocol):
    """A status that may pass: the engine has just started, or has too much to do."""


@dataclass(slots=True)
class Trials:
    """The trials of one engine, and what they have shown so far."""

    client: EngineClient
    capabilities: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    is_probe: bool = False
    begins_as_probe: bool = False  # and is none after that, as one that is misread
    max_context_tokens: int | None = None

    async def run(self) -> None:
        """All trials that the dialect has words for. Raises EngineTimeout when the first one gets no answer."""
        await self._first()
        if not self.capabilities:
            return
        # A dialect without words for a fixed length leaves it out, so an exact length would show nothing.
        if "ignore_eos" in self.client.dialect.capabilities:
            await self.attempt("ignore_eos", self._ignore_eos)
        await self.attempt("n", self._samples)
        await self.attempt("logprobs", self._logprobs)
        await self.attempt("prompt_logprobs", self._prompt_logprobs)
        await self.attempt("cache_salt", self._cache_salt)
        await self.attempt("sampling", self._sampling)
        await self.attempt("stop_token_ids", self._stop_token)
        await self.attempt("chat", self._chat)
        await self.attempt("request_id", self._request_id)
        await self.attempt("beam", self._beams)
        await self.attempt("speculation", self._drafts)
        await self.attempt("priority", self._priority)

    async def prefix_cache_hits(self) -> bool | None:
        """Whether a prompt sent twice is served from cache the second time; None where the engine does not tell."""
        try:
            await self._hits(self._long_request())
            hits = await self._hits(self._long_request())
        except (EngineProtocol, EngineTimeout, UsageError) as error:
            self.notes.append(f"prefix caching: {clean(str(error))}")
            return None
        return None if hits is None else hits > 0

    async def _hits(self, request: GenerationRequest) -> float | None:
        """How many prompt tokens of `request` came from the cache; None where the engine does not tell."""
        before = await self._prefix_hits()
        answer = await self.ask(request)
        if answer.usage is not None and answer.usage.cached_tokens is not None:
            self.capabilities.add("cached_tokens")  # some leave it out where it is 0, as in the first answer
            return answer.usage.cached_tokens
        after = await self._prefix_hits()
        return None if before is None or after is None else after - before

    def _long_request(self) -> GenerationRequest:
        length = max(1, min(_LONG, (self.max_context_tokens or _LONG) - 4))
        ring = Ring(tuple(range(_FIRST + 100, _FIRST + 100 + length)), _SALT).prompt[:length]
        as_text = "token_ids" not in self.client.dialect.capabilities
        return self.request(ring if self.is_probe else plain(ring, as_text=as_text), max_tokens=1)

    async def _first(self) -> None:
        """A ring, streamed. Shows the stream, ids, usage, and whether this is the probe."""
        answer = await self._first_answer()
        choice = answer.choices[0] if answer is not None and answer.choices else None
        if answer is None or choice is None:
            self.notes.append("the first answer held no text: nothing more was tried")
            return
        if choice.token_times_s:
            self.capabilities.add("stream")
        if answer.truncated:
            self.notes.append("stream: the answer ended without a finish reason")
        if "token_ids" in self.client.dialect.capabilities and choice.token_ids:
            self.capabilities.add("token_ids")
        if answer.usage is not None and answer.usage.completion_tokens is not None:
            self.capabilities.add("usage")
            if answer.usage.cached_tokens is not None:
                self.capabilities.add("cached_tokens")

    async def _first_answer(self) -> Completion | None:
        """The first answer that can be had: a ring streamed, else whole, else plain text."""
        ring, text = self.request(RING.prompt), self.request(_PLAIN_TEXT)
        for request in (ring, replace(ring, stream=False), text, replace(text, stream=False)):
            what = "plain text" if request.prompt == _PLAIN_TEXT else "the probe's ring"
            what += ", streamed" if request.stream else ", whole"
            try:
                answer = await self._ask_patiently(request)
            except (EngineProtocol, UsageError) as error:
                self.notes.append(f"{what}: {clean(str(error))}")
                continue
            if request.prompt != _PLAIN_TEXT:
                self._judge_ring(answer)
            return answer
        return None

    async def _ask_patiently(self, request: GenerationRequest) -> Completion:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self.ask(request)
            except _NotNow as error:
                self.notes.append(f"the first answer: {clean(str(error))}: asked again")
                await asyncio.sleep(_PAUSE_S)
        try:
            return await self.ask(request)
        except _NotNow as error:
            if await self.client.healthy():
                raise
            raise EngineDied(f"the engine at {self.client.url} says that it is not healthy, and failed the first "
                             f"request {_ATTEMPTS} times: {clean(str(error))}: start it anew") from error

    def _judge_ring(self, answer: Completion) -> None:
        """Raises EngineProtocol where the prompt stands before the answer: its tokens would count as generated."""
        choice = answer.choices[0] if answer.choices else Choice(0)
        if Codec.encode(RING.prompt[1:]) in choice.text:  # the separator may be a special token, and not shown
            raise EngineProtocol(f"the engine at {self.client.url} sends the prompt back in front of its answer: "
                                 "expected the answer alone; switch that off in the engine (Triton's ensemble has to "
                                 "know exclude_input_in_output)")
        ids = choice.token_ids or Codec.decode(choice.text)
        check = check_answer(RING, ids)
        self.is_probe = check.wrong == 0 and check.verified >= NUM_TOKENS - 1
        if not self.is_probe:
            right = RING.expected(NUM_TOKENS)
            wrong_at = next((at for at, (one, other) in enumerate(zip(ids, right, strict=False)) if one != other),
                            min(len(ids), NUM_TOKENS))
            shown = slice(max(0, wrong_at - 2), wrong_at + 4)
            self.notes.append(f"the probe's ring did not come back: expected {Codec.encode(right[shown])} from token "
                              f"{shown.start} on, got {Codec.encode(ids[shown]) or 'nothing'}")
            self.begins_as_probe = wrong_at > 0

    async def _ignore_eos(self) -> bool:
        prompt = _SAYS_EOS if self.is_probe else _PLAIN_TEXT
        answer = await self.ask(self.request(prompt))
        choice = answer.choices[0] if answer.choices else None
        if choice is None:
            raise EngineProtocol("answered with nothing")
        told = answer.usage.completion_tokens if answer.usage is not None else None
        return (len(choice.token_times_s) if told is None else told) == NUM_TOKENS

    async def _samples(self) -> bool:
        # Sampled: vLLM refuses several greedy samples.
        answer = await self.ask(replace(self.request(self._prompt()), n=2, temperature=1.0, seed=0, stream=False))
        if not answer.choices or not all(choice.text for choice in answer.choices):
            raise EngineProtocol("answered with nothing, or with a sample that is empty")
        return [choice.index for choice in answer.choices] == [0, 1]

    async def _logprobs(self) -> bool:
        answer = await self.ask(replace(self.request(self._prompt()), logprobs=True, stream=False))
        if not answer.choices:
            raise EngineProtocol("answered with nothing")
        return len(answer.choices[0].logprobs or ()) > 0

    async def _prompt_logprobs(self) -> bool:
        answer = await self.ask(replace(self.request(self._prompt(), 1), prompt_logprobs=True, stream=False))
        told = answer.choices[0].prompt_logprobs if answer.choices else None
        return bool(told) and all(value is not None for value in (told or [])[1:])

    async def _sampling(self) -> bool:
        """Different seeds differ, equal seeds agree. At a fork of the probe each branch has probability 1/2."""
        first, again = [await self._draw() for _ in range(2)]
        if len(set(first)) == 1:
            self.notes.append(f"sampling: {len(_SEEDS)} seeds gave one and the same answer at temperature 1")
        elif first != again:
            self.notes.append("sampling: equal seeds gave different answers")
        return len(set(first)) > 1 and first == again

    async def _draw(self) -> list[str]:
        prompt = FORK.prompt if self.is_probe else _PLAIN_TEXT
        length = 1 if self.is_probe else 8
        request = replace(self.request(prompt, length), temperature=1.0, stream=False)
        answers = await asyncio.gather(*(self.ask(replace(request, seed=seed)) for seed in _SEEDS))
        if not all(answer.choices for answer in answers):
            raise EngineProtocol("answered with nothing")
        return [answer.choices[0].text for answer in answers]

    async def _stop_token(self) -> bool:
        """Ends with the third token of the ring, which still belongs to the answer, instead of at max_tokens."""
        if not self.is_probe:
            raise UsageError("which token comes third is known of the probe alone")
        answer = await self.ask(replace(self.request(RING.prompt), stop_token_ids=tuple(RING.expected(3)[2:])))
        ends = [(choice.finish_reason, len(choice.token_ids or ())) for choice in answer.choices]
        return ends == [("stop", 3)]

    async def _chat(self) -> bool:
        """The ring as a chat message comes back as a ring: the template adds nothing."""
        answer = await self.ask(replace(self.request(self._prompt()), chat=True))
        if not answer.choices:
            raise EngineProtocol("answered with nothing")
        text = answer.choices[0].text
        return not self.is_probe or check_answer(RING, Codec.decode(text)).verified >= NUM_TOKENS - 1

    async def _request_id(self) -> bool:
        """The answer bears the name that the request was given."""
        name = f"pabench-{uuid.uuid4().hex}"
        answer = await self.ask(replace(self.request(self._prompt(), 1), request_id=name, stream=False))
        return name in (answer.id or "")

    async def _cache_salt(self) -> bool:
        """A good salt is taken, and one that is empty (vLLM) or no text (SGLang) is refused: who does not know the
        field ignores it, or refuses all.

        Whether salts keep requests apart is a requirement, so it is not asked here.
        """
        await self.ask(replace(self.request(self._prompt(), 1), cache_salt="pabench"))
        for bad in ("", cast("str", 5)):
            try:
                await self.ask(replace(self.request(self._prompt(), 1), cache_salt=bad))
            except _Refused:
                return True
        return False

    async def _beams(self) -> bool:
        """The two best continuations of a fork are its branches. An engine that ignores beams gives one sample."""
        prompt = FORK.prompt if self.is_probe else _PLAIN_TEXT
        answer = await self.ask(replace(self.request(prompt, 3), n=2, beam_width=2, stream=False))
        return len(answer.choices) == 2 and answer.choices[0].text != answer.choices[1].text

    async def _drafts(self) -> bool:
        """Whether drafts are counted while a text repeats itself, the best case of all who guess."""
        before = await self.client.kv_sample()
        if before is None or before.drafted is None:
            raise UsageError("the engine counts no drafts")
        await self.ask(self.request(self._prompt(), 3 * NUM_TOKENS))
        after = await self.client.kv_sample()
        return after is not None and (after.drafted or 0) > before.drafted

    async def _priority(self) -> bool:
        """vLLM and the reference engine refuse any but 0 where they serve in the order of arrival."""
        await self.ask(replace(self.request(self._prompt(), 1), priority=1, stream=False))
        return True

    async def _prefix_hits(self) -> float | None:
        sample = await self.client.kv_sample()
        return None if sample is None else sample.prefix_hits

    async def attempt(self, name: str, trial: Callable[[], Awaitable[bool]]) -> None:
        """Capability `name`, where the trial shows it; a note where it does not. See the module."""
        num_notes = len(self.notes)
        try:
            shown = await trial()
        except UsageError:
            return  # the dialect has no words for it
        except (EngineProtocol, EngineTimeout) as error:
            self.notes.append(f"{name}: {clean(str(error))}")
            if isinstance(error, _Refused) or name not in self.client.dialect.capabilities:
                return
            self.notes[-1] += f"; taken for a fault, since every engine of dialect {self.client.dialect.name} has it"
            shown = True
        if shown:
            self.capabilities.add(name)
        elif len(self.notes) == num_notes:
            self.notes.append(f"{name}: asked for and not given")

    def _prompt(self) -> tuple[int, ...] | str:
        return RING.prompt if self.is_probe else _PLAIN_TEXT

    def request(self, prompt: tuple[int, ...] | str, max_tokens: int = NUM_TOKENS) -> GenerationRequest:
        """The plainest request."""
        return GenerationRequest(prompt, max_tokens)

    async def ask(self, request: GenerationRequest) -> Completion:
        """The answer; raises _Refused when the engine refused, EngineProtocol when it failed."""
        answer = await self.client.generate(request)
        if answer.error is not None:
            kind = (_NotNow if answer.status in _PASSING else _Refused if 400 <= answer.status < 500 else
                    EngineProtocol)
            raise kind(f"answered with status {answer.status}: {answer.error}")
        return answer
