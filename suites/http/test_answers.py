"""What comes back: streams, ends of streams, and counts of tokens."""

from __future__ import annotations

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.prompts import fork_of_prompt_length
from pabench.conformance.verify import FORK_TEMPERATURE, Ask
from pabench.engines.base import Completion


@pytest.mark.requirement("http/stream-equals-whole", case="short-joiners")
def test_stream_equals_whole(engine: EngineUnderTest) -> None:
    """Each ring streamed and whole, all at once, while requests of a single token join and leave the batch."""
    block = engine.edge
    length, tokens = min(block + 3, engine.longest // 3), min(2 * block, engine.longest // 3)
    pairs = engine.num_rings(max(2, engine.profile.concurrency // 3), 2 * length)
    rings = engine.rings([length] * (2 * pairs))[0]
    asks = []
    for i, ring in enumerate(rings[:pairs]):
        asks += [Ask(ring, tokens, f"stream {i}"), Ask(ring, tokens, f"whole {i}", stream=False),
                 Ask(rings[pairs + i], 1, f"single token {i}", stream=i % 2 == 0)]
    engine.case = f"{len(asks)} requests at once, a third of them streamed, whole, of one token; greedy {tokens} tokens"
    answers = engine.ask(asks, concurrency=len(asks) - pairs // 2)
    for i in range(pairs):
        streamed, whole = answers[3 * i], answers[3 * i + 1]
        if streamed.choices[0].text != whole.choices[0].text:
            fail(f"stream {i} has the text of whole {i}: {whole.choices[0].text[:80]!r}",
                 repr(streamed.choices[0].text[:80]), hint="same tokens, other text: is a space lost between chunks?")
    for ask, answer in zip(asks, answers, strict=True):
        _check_end(ask, answer)


@pytest.mark.requirement("http/stream-equals-whole", case="samples")
def test_stream_of_samples(engine: EngineUnderTest) -> None:
    """A stream that carries several samples: each complete, each ended once."""
    engine.need("n", "several samples in one stream")
    engine.need("sampling", "samples that differ")
    samples = engine.profile.samples
    fork = fork_of_prompt_length(engine.spec, engine.rng, min(2 * engine.edge + 5, engine.longest // 3))
    ask = Ask(fork, len(fork.prompt), "A", n=samples, temperature=FORK_TEMPERATURE)
    engine.case = f"one stream of {samples} samples; {len(fork.prompt)} tokens each, temperature {FORK_TEMPERATURE}"
    ask, answer = engine.ask_samples(ask)
    engine.note = f"n {ask.n}"
    _check_end(ask, answer)


def _check_end(ask: Ask, answer: Completion) -> None:
    reasons = [choice.finish_reason for choice in answer.choices]
    if reasons != ["length"] * ask.n:
        fail(f"{ask.name} ends with finish reason 'length', {ask.n} times", f"{reasons}")
    if ask.stream and answer.finish_events != ask.n:
        fail(f"{ask.name} carries {ask.n} finish reasons, one a sample", f"{answer.finish_events}")


@pytest.mark.requirement("http/usage-exact")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_usage_exact(engine: EngineUnderTest, stream: bool) -> None:
    """One sample and several; the same prompt twice, so that the second may be answered from cache."""
    if stream:
        engine.need("stream", "counts in a stream")
    length = min(2 * engine.edge + 1, engine.longest // 3)
    ring = engine.rings([length])[0][0]
    counts = [1, 3] if engine.can("n") and engine.can("sampling") else [1]
    for n in counts:
        for tokens in (1, 7):
            engine.case = f"{length} prompt tokens, max_tokens {tokens}, n {n}, {'streamed' if stream else 'whole'}"
            # A ring leaves no choice at any temperature, and some engines refuse several samples without one.
            ask = Ask(ring, tokens, "A", n=n, stream=stream, temperature=0.0 if n == 1 else FORK_TEMPERATURE)
            if n == 1:
                _check_usage(ask, engine.ask([ask])[0])
            else:
                _check_usage(*engine.ask_samples(ask))


def _check_usage(ask: Ask, answer: Completion) -> None:
    usage = answer.usage
    if usage is None:
        fail("the answer states its token counts", "it does not")
    prompt, generated = len(ask.prompt.prompt), ask.tokens * ask.n
    if usage.prompt_tokens != prompt:
        fail(f"prompt_tokens = {prompt}", f"{usage.prompt_tokens}", hint="is a token put before the prompt unasked?")
    if usage.completion_tokens != generated:
        fail(f"completion_tokens = {generated}, {ask.tokens} of each sample", f"{usage.completion_tokens}")
    if usage.cached_tokens is not None and not 0 <= usage.cached_tokens <= prompt:
        fail(f"cached_tokens between 0 and the {prompt} of the prompt", f"{usage.cached_tokens}")
