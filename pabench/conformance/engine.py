"""`engine`, what a test holds: plain calls to the engine under test, every one of them bounded and recorded.

    completions = engine.generate(requests, concurrency=8)        # any requests
    engine.ask([Ask(ring, 64, "A")])                              # sent, and verified token by token
    pending = engine.start(asks); engine.abort(request, 3); pending.verify()
    sample = engine.metrics_when_stable(idle, within_s=3)
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pabench.conformance.comparison import Tally
from pabench.conformance.exchange import Exchange, Geometry, RawPost, exchange_as_json
from pabench.conformance.failure import CaseFailed, Failure
from pabench.conformance.metered import MeteredEngine
from pabench.conformance.prompts import braid_of_prompt_length, rings_of_prompt_lengths
from pabench.conformance.session import EngineSession, plain_prompt
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask, check_completion, check_form, check_length, fork_temperature
from pabench.conformance.wire import Pending
from pabench.engines.base import Completion, GenerationRequest
from pabench.engines.cleaning import clean
from pabench.errors import EngineProtocol
from pabench.probe import Ring, complement

_SHARE_COMPARED = 0.5  # of the tokens of a case without the probe, or it proves nothing
_TIME_KEPT = 0.4       # of a case's time, which references are not to use up


class EngineUnderTest(MeteredEngine):
    """The engine under test, for one case. `case` says in a line what the case sends; tests set it."""

    def __init__(self, session: EngineSession, rng: np.random.Generator, geometry: Geometry | None = None) -> None:
        super().__init__(session, geometry or Geometry.of(session.facts))
        self.rng = rng
        self.case = ""
        self.killer: dict[str, Any] | None = None  # of the engine, as JSON, where a request alone is found to end it
        self._note = ""
        self._tally = Tally()

    # What the case came to ---------------------------------------------------------------------------------------

    @property
    def note(self) -> str:
        """Shown beside a PASS: what was, and was not, exercised; without the probe, what was compared."""
        busy = sum(exchange.num_busy for exchange in self.exchanges)
        again = f"asked again after {busy} answers of HTTP 429" if busy else ""
        return "; ".join(filter(None, [self._note, again, self._session.selfcheck.text(self._tally)]))

    @note.setter
    def note(self, text: str) -> None:
        self._note = text

    @property
    def unproven(self) -> str:
        """Why a case that came to its end proves nothing; "" when it does."""
        if self._tally.answers and self._tally.compared < max(1, _SHARE_COMPARED * self._tally.total):
            return f"too little could be compared: {self._session.selfcheck.text(self._tally)}"
        return ""

    @property
    def time_left_s(self) -> float:
        """Seconds until the case has used up its time."""
        return self._wire.time_left_s

    @property
    def exchanges(self) -> list[Exchange]:
        """All requests of the case, in the order of sending."""
        return self._wire.exchanges

    @property
    def asked(self) -> bool:
        """Whether anything at all was asked of the engine."""
        return self._wire.asked

    def cancel(self) -> None:
        """Give up what is still under way: its connections are closed."""
        self._wire.cancel()

    def drawn(self) -> dict[str, Any]:
        """See targets.Subject: seed and geometry give the same prompts again."""
        return {"geometry": asdict(self.geometry)}

    def evidence(self) -> dict[str, Any]:
        """See targets.Subject."""
        return {"killer": self.killer, "exchanges": [exchange_as_json(exchange) for exchange in self.exchanges]}

    # Asking ------------------------------------------------------------------------------------------------------

    @property
    def sampling_temperature(self) -> float:
        """For samples of a fork, that choose at the fork alone; of another model, for samples that differ at once."""
        return fork_temperature(self.spec) if self.is_probe else 1.0

    @property
    def time_for_references(self) -> bool:
        """Whether the case has time left to ask more of what its answers are held against, without the probe."""
        return self.time_left_s > _TIME_KEPT * self.profile.case_timeout_s

    def need_lengths(self) -> None:
        """Skip the test, as UNSUPPORTED, where an answer may end when the model likes."""
        if not self.is_probe:
            self.need("ignore_eos", "how long an answer must be is known of the KV probe alone")

    def need_cold(self, why: str) -> None:
        """Skip the test, as UNSUPPORTED, where the model is not the probe and nothing warm can be asked cold."""
        if not self.is_probe and not self._session.selfcheck.cold_at_any_time:
            unsupported(f"{why}: without the KV probe that takes an engine with cache salts, or without a prefix cache")

    def need_cache(self, why: str) -> None:
        """Skip the test, as UNSUPPORTED, where the engine says that it has no prefix cache."""
        if self.facts.kv is not None and self.facts.kv.prefix_caching is False:
            unsupported(f"{why}: the engine has no prefix cache")

    def need_hit(self, answer: Completion | None, why: str) -> None:
        """Skip the test, as UNSUPPORTED, where the engine tells cached tokens, and of `answer` that there were none.

        Some leave the count out where it is 0.
        """
        if self.can("cached_tokens") and answer is not None and not (answer.usage and answer.usage.cached_tokens):
            unsupported(why)

    def rings(self, prompt_lengths: Sequence[int]) -> list[list[Ring]]:
        """Two crowds of rings of these prompt lengths, the second the complement of the first.

        A damaged key makes a head say bit 0: only together do they show it for every bit. One after the other,
        since a token may stand in both.
        """
        rings = rings_of_prompt_lengths(self.spec, self.rng, prompt_lengths)
        return [rings, [complement(ring, self.spec) for ring in rings]]

    def braid(self, length: int, tokens: int, name: str) -> Ask:
        """A braid of `length` prompt tokens, to be answered with `tokens`: sampled where the engine samples.

        Greedily, a generated slot that is lost or at a wrong position leaves a tie that falls as on the first round.
        """
        temperature = self.sampling_temperature if self.is_probe and self.can("sampling") else 0.0
        return Ask(braid_of_prompt_length(self.spec, self.rng, length), tokens, name, temperature=temperature)

    def num_rings(self, wanted: int, length: int) -> int:
        """How many rings of `length` prompt tokens to draw at once: `wanted`, or as many as the vocabulary has."""
        count = min(wanted, len(self.spec.paired_ids) // length)
        if count == 0:
            unsupported(f"probe {self.spec.preset!r} has too few tokens for a ring of {length}: serve 'long'")
        return count

    def plain_prompt(self, length: int) -> tuple[int, ...] | str:
        """A prompt for any model; what it is answered with is not checked."""
        return plain_prompt(self.facts, length, int(self.rng.integers(512)))

    def generate(
        self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None
    ) -> list[Completion]:
        """All answers; at most `concurrency` requests at once (all by default), the next when one ends."""
        return self.start_plain(requests, concurrency=concurrency).wait()

    def start_plain(self, requests: Sequence[GenerationRequest], *, concurrency: int | None = None) -> Pending:
        """Send any requests without waiting."""
        return self._wire.start([Exchange(self._phrased(request)) for request in requests], concurrency)

    def start(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> Pending:
        """Send without waiting."""
        self._measure_noise()
        if not self.is_probe:
            self._session.selfcheck.prepare(self, asks)
        exchanges = [Exchange(self._request(ask), ask.name) for ask in asks]
        return self._wire.start(exchanges, concurrency, lambda completions: self.verify(asks, completions))

    def ask(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> list[Completion]:
        """Send, wait, and verify every token of every answer. Raises CaseFailed."""
        return self.start(asks, concurrency=concurrency).verify()

    def told(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> list[Completion]:
        """Answers of which a number is judged, not the text: that is verified on the probe alone."""
        return self.start_told(asks, concurrency=concurrency).verify()

    def start_told(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> Pending:
        """The same, under way."""
        if self.is_probe:
            return self.start(asks, concurrency=concurrency)
        return self.start_plain([ask.request for ask in asks], concurrency=concurrency)

    def ask_samples(self, ask: Ask) -> tuple[Ask, Completion]:
        """Like `ask`, with as many samples as the engine takes, at most `ask.n`: what it took, and its answer.

        An engine may refuse more samples than it has room for; skips the test, as UNSUPPORTED, when it refuses 2.
        """
        completion = self.generate([self._request(ask)])[0]
        while refused(completion):
            ask = replace(ask, n=self.fewer_samples(ask.n, completion))
            completion = self.generate([self._request(ask)])[0]
        self.verify([ask], [completion])
        return ask, completion

    def fewer_samples(self, refused_n: int, completion: Completion) -> int:
        """Half of `refused_n`, at least 2. Skips the test, as UNSUPPORTED, where even 2 were refused."""
        if refused_n <= 2:
            unsupported(f"the engine refuses {refused_n} samples of this prompt: HTTP {completion.status}: "
                        f"{clean(completion.error or '')}")
        fewer = max(2, refused_n // 2)
        self.case += f"; n {fewer}, since the engine refuses {refused_n}"
        return fewer

    def verify(self, asks: Sequence[Ask], completions: Sequence[Completion]) -> None:
        """Raise CaseFailed for the first answer that is not what its prompt demands."""
        failures = list(filter(None, (
            self._check(i, asks, completions) if self.is_probe else self._check_by_itself(i, asks, completions)
            for i in range(len(asks)))))
        if failures:
            if len(asks) > 1:
                self.case += f"; {len(failures)} of {len(asks)} answers wrong, the first is shown"
            raise CaseFailed(failures[0])

    def _check(self, i: int, asks: Sequence[Ask], completions: Sequence[Completion]) -> Failure | None:
        """By the probe's oracle."""
        others = [*asks[:i], *asks[i + 1:]]
        return check_completion(self.spec, asks[i], completions[i], others, self.block_size)

    def _check_by_itself(self, i: int, asks: Sequence[Ask], completions: Sequence[Completion]) -> Failure | None:
        """By self-consistency. Skips the test, as UNSUPPORTED, where that can tell nothing of this model."""
        ask, check = asks[i], self._session.selfcheck
        if (failure := check_form(ask, completions[i])) is not None:
            return failure
        if fault := check.noise(self).fault:
            return Failure("one prompt, alone and cold, has one answer", fault,
                           hint="does a sequence own all of its blocks, or is one of them in another's hands?")
        if problem := check.noise(self).problem:
            unsupported(f"the engine is not known to serve the KV probe (if it does, name it with --probe), and by "
                        f"self-consistency: {problem}")
        others = [(other.name_of(choice), choice) for other, completion in zip(asks, completions, strict=True)
                  if other.prompt != ask.prompt for choice in completion.choices]
        for choice in sorted(completions[i].choices, key=lambda choice: choice.index):
            name = ask.name_of(choice)
            failure = check.check(self, ask, choice, name, others, self._tally)
            if failure is None and choice.token_ids is not None and self.can("ignore_eos"):
                failure = check_length(ask, choice.token_ids, name)
            if failure is not None:
                return failure
        return None

    def ask_alone(self, request: GenerationRequest, name: str) -> Completion:
        """The answer to one request, sent as it is; see selfcheck.Asker."""
        return self._wire.send(Exchange(request, name))

    def abort(self, request: GenerationRequest, after_tokens: int) -> Completion:
        """Stream `request` and disconnect after so many tokens; the answer so far."""
        self._measure_noise()
        return self._wire.abort(Exchange(self._phrased(request)), after_tokens)

    def abort_all(self, requests: Sequence[GenerationRequest], delays_s: Sequence[float]) -> None:
        """Stream all `requests` at once; disconnect from each so many seconds after it was sent."""
        self._measure_noise()
        self._wire.abort_all([Exchange(self._phrased(request)) for request in requests], delays_s)

    def post_raw(self, path: str, body: bytes | dict[str, object]) -> tuple[int, bytes]:
        """Status and body of a POST of exactly this."""
        return self._wire.post(Exchange(RawPost(path, body)))

    # How -------------------------------------------------------------------------------------------------------

    def _measure_noise(self) -> None:
        """Once a run, without the probe, and before a case can spoil what it would be measured on."""
        if not self.is_probe:
            with contextlib.suppress(EngineProtocol):  # what is refused here is refused there, and judged there
                self._session.selfcheck.noise(self)

    def _request(self, ask: Ask) -> GenerationRequest:
        """`ask` as it is sent to the model that is served."""
        return ask.request if self.is_probe else self._session.selfcheck.request(ask)

    def _phrased(self, request: GenerationRequest) -> GenerationRequest:
        """`request` with its ids in the words of the model that is served."""
        if self.is_probe or isinstance(request.prompt, str):
            return request
        return replace(request, prompt=self._session.selfcheck.phrase(request.prompt))


def refused(completion: Completion) -> bool:
    """Whether the engine said that it will not do this: a 4xx status. A 5xx is a fault."""
    return completion.error is not None and 400 <= completion.status < 500
