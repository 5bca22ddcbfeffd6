"""Self-consistency: an engine that does not serve the KV probe is held against itself, alone and cold.

The reference for an answer is what the engine says to the same prompt when nothing else runs and nothing of the
prompt is cached. It is asked for in two pieces, the second behind the prompt and the first half of the answer, so that
what was decoded is held against a prefill of the same tokens too. Then, token by token:

    same token       its log-probability must be the same, within a tolerance made of the measured noise (`noise`)
    another token    is a fault where the reference's token leads by more than the tolerance. Where it does not, both
                     answers are right: the comparison goes on behind the token that came
    without log-probabilities
                     another token is a fault unless both come in samples of a low temperature, alone and cold, as what
                     is nearly alike does. Of an engine that does not sample one token, and one more in 32, may depart
                     if all that follows it is what the engine says alone behind it, for 8 tokens or to the end, at
                     least 4: a fault stays in the cache, a near tie does not
    an early end     where alone the answer goes on, is as another token: a fault where what follows leads; without
                     log-probabilities, where the answer was cut for its length and alone has more words at that length
    sampled          each token's log-probability must be the one that it has as part of a prompt

Cold is what has a cache salt of its own, or any request where there is no prefix cache. Where neither is so, the
reference is asked for before the requests that it is for, while its prompt is still new to the engine.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import replace

from pabench.conformance.comparison import Asker, Comparison, Tally, shown
from pabench.conformance.failure import Failure
from pabench.conformance.noise import Noise, measure_noise
from pabench.conformance.tokens import Prompt, Token, begin_alike, continued, tokens_of
from pabench.conformance.verify import Ask
from pabench.engines.base import Choice, Completion, EngineFacts, GenerationRequest
from pabench.engines.wording import plain
from pabench.errors import EngineProtocol

# By arithmetic, with odds of exp(nats / temperature): of two tokens 0.3 nats apart, where others take a third of the
# draws, one is missing once in a thousand times; of two that are 2 nats apart the other comes 4 times in 100. The
# noise of a random model in bfloat16 was 0.12 nats. Words may be several tokens.
_TIED_AT = 0.3   # temperature
_DRAWS = 32
_WORD_TOKENS = 4

class SelfCheck:
    """The references of one run, and the noise between them, measured when the first is needed."""

    def __init__(self, facts: EngineFacts, seed: int) -> None:
        can = facts.capabilities
        self._facts = facts
        self._seed = seed
        self._salted = "cache_salt" in can
        self._noise: Noise | None = None
        self._references: dict[Prompt, tuple[int, list[Token]]] = {}  # how many tokens were asked for, and the answer
        self.without_logprobs = not {"token_ids", "logprobs"} <= can
        self.samples = "sampling" in can
        self.scores = {"token_ids", "logprobs", "prompt_logprobs", "sampling"} <= can
        # An engine that tells nothing of a prefix cache may have one.
        told = facts.kv is not None and facts.kv.prefix_caching is not None
        self.cold_at_any_time = self._salted or (told and "prefix_cache" not in can)

    def noise(self, asker: Asker) -> Noise:
        """The noise, measured once a run."""
        if self._noise is None:
            self._noise = measure_noise(self, asker, self._seed)
        return self._noise

    def phrase(self, ids: Sequence[int]) -> Prompt:
        """The probe's `ids` as this engine's model takes them."""
        return plain(ids, as_text="token_ids" not in self._facts.capabilities)

    def request(self, ask: Ask) -> GenerationRequest:
        """`ask` as it is sent to this engine."""
        return replace(ask.request, prompt=self.phrase(ask.prompt.prompt), logprobs=not self.without_logprobs)

    def text(self, tally: Tally) -> str:
        """What was done, for a verdict."""
        if self._noise is None or not tally.answers:
            return ""
        ties = f", {tally.ties} near ties" if tally.ties else ""
        furthest = "" if self.without_logprobs else f", at most {tally.furthest_nats:.2g} nats apart"
        return (f"self-consistency, {self._noise.text}, {tally.compared} of {tally.total} tokens "
                f"compared{furthest}{ties}")

    def prepare(self, asker: Asker, asks: Sequence[Ask]) -> None:
        """Ask for the references of `asks` now, where later they would not be cold."""
        if self.cold_at_any_time or self.noise(asker).problem or self.noise(asker).fault:
            return
        for ask in asks:
            if ask.temperature == 0 and asker.time_for_references:
                with contextlib.suppress(EngineProtocol):  # what is refused here is refused there, and judged there
                    self.reference(asker, self.request(ask).prompt, ask.tokens, ask.name)

    def check(
        self, asker: Asker, ask: Ask, choice: Choice, name: str, others: Sequence[tuple[str, Choice]], tally: Tally
    ) -> Failure | None:
        """What is wrong with one sample; None when nothing is. `others` are samples of other prompts, by name."""
        tokens = tokens_of(choice)
        tally.answers += 1
        tally.total += len(tokens)
        prompt = self.request(ask).prompt
        if ask.temperature > 0:
            return self._check_sample(asker, prompt, tokens, name, tally)
        comparison = Comparison(self, asker, prompt, tokens, name, others, tally)
        failure = comparison.run()
        if failure is None and len(tokens) < ask.tokens and not ask.stop_token_ids:
            failure = comparison.end(ask.tokens, cut=choice.finish_reason == "length")
        return failure

    def cold(
        self, asker: Asker, prompt: Prompt, count: int, name: str, *, temperature: float = 0.0, seed: int | None = None
    ) -> list[Token]:
        """`count` tokens behind `prompt`, from an engine that runs nothing else and has nothing of it cached."""
        request = GenerationRequest(prompt, count, temperature=temperature, seed=seed, stream=False,
                                    logprobs=not self.without_logprobs, cache_salt=self._new_salt())
        return tokens_of(self._answer(asker, request, name).choices[0])

    def score(self, asker: Asker, prompt: Prompt, tokens: Sequence[Token]) -> list[float | None]:
        """Log-probability of each of `tokens` as part of a prompt, which is read at once and cold."""
        whole = continued(prompt, tokens)
        request = GenerationRequest(whole, 1, stream=False, prompt_logprobs=True, cache_salt=self._new_salt())
        told = self._answer(asker, request, "score").choices[0].prompt_logprobs or []
        return told[len(prompt):]

    def tied(self, asker: Asker, prompt: Prompt, one: Token, other: Token) -> bool | None:
        """Whether the engine, alone and cold, says now one and now the other behind `prompt`; None: no time to tell."""
        left, count = [one, other], _WORD_TOKENS if isinstance(prompt, str) else 1
        for seed in range(_DRAWS):
            drawn = self.cold(asker, prompt, count, "near tie", temperature=_TIED_AT, seed=seed)
            left = [token for token in left if not (drawn and begin_alike(token, drawn[0]))]
            if not left:
                return True
            if not asker.time_for_references:
                return None
        return False

    def _check_sample(
        self, asker: Asker, prompt: Prompt, tokens: list[Token], name: str, tally: Tally
    ) -> Failure | None:
        """A sample, where the engine can tell of it; else it counts as not compared."""
        noise = self.noise(asker)
        fits = tokens[: max(0, asker.longest - len(prompt) - 1)]
        if not noise.samples_tell or not fits or not asker.time_for_references:
            return None
        for index, (token, score) in enumerate(zip(fits, self.score(asker, prompt, fits), strict=False)):
            if not tally.near(token.logprob, score, noise.tolerance):
                return Failure(
                    f"{name}[{index}] = {shown(token, score)}, as in a prompt that is read at once",
                    f"{name}[{index}] = {shown(token, token.logprob)}", reads=self.reads(asker),
                    hint="a sample read what it did not write: is a shared block copied before the first write to it?")
            tally.compared += 1
        return None

    def reference(self, asker: Asker, prompt: Prompt, count: int, name: str) -> list[Token]:
        """`count` tokens behind `prompt`, alone and cold, or fewer where the answer ends before; asked for once."""
        asked, known = self._references.get(prompt, (0, []))
        if asked < count:  # not `len(known)`: an answer may end before, and of text it is words that are counted
            known = self.cold(asker, prompt, count, f"reference of {name}")
            self._references[prompt] = count, known
        return known[:count]

    def _answer(self, asker: Asker, request: GenerationRequest, name: str) -> Completion:
        answer = asker.ask_alone(request, name)
        if answer.error is not None or not answer.choices:
            raise EngineProtocol(f"{name}: a prompt alone in the engine is answered with HTTP {answer.status}: "
                                 f"{answer.error or 'nothing'}")
        return answer

    def _new_salt(self) -> str | None:
        return f"pabench-{uuid.uuid4().hex}" if self._salted else None

    def reads(self, asker: Asker) -> str:
        """How it was compared, for a failure."""
        return f"by self-consistency, without the KV probe: {self.noise(asker).text}"
