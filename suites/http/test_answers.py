"""What comes back: streams, ends of streams, and counts of tokens."""

from __future__ import annotations

import pytest

from pabench.conformance.engine import EngineUnderTest, refused
from pabench.conformance.failure import fail
from pabench.conformance.prompts import fork_of_prompt_length
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask, fork_temperature
from pabench.engines.base import Completion

_SHOWN = 40   # characters on each side of the first that differs
_LONGER = 6   # times as many tokens for who stays when another leaves, to be there still
_LEAVES = 4   # until who leaves did so while the other was served


@pytest.mark.requirement("http/stream-equals-whole", case="rings")
def test_stream_equals_whole(engine: EngineUnderTest) -> None:
    """Each ring streamed and whole, all at once."""
    length, tokens = _sizes(engine)
    pairs = engine.num_rings(max(2, engine.profile.concurrency // 2), length)
    asks = []
    for i, ring in enumerate(engine.rings([length] * pairs)[0]):
        asks += [Ask(ring, tokens, f"stream {i}"), Ask(ring, tokens, f"whole {i}", stream=False)]
    engine.case = f"{len(asks)} rings at once, each streamed and whole; greedy {tokens} tokens"
    answers = engine.ask(asks)
    for i in range(pairs):
        streamed, whole = (answers[2 * i + at].choices[0] for at in (0, 1))
        # Without the probe they may part at a near tie, and then have different tokens, or other letters.
        alike = (_letters(streamed.text) == _letters(whole.text) if streamed.token_ids is None
                 else streamed.token_ids == whole.token_ids)
        if alike and streamed.text != whole.text:
            at = _parting(streamed.text, whole.text)
            shown = slice(max(0, at - _SHOWN), at + _SHOWN)
            fail(f"stream {i} has the text of whole {i}, at character {at} {whole.text[shown]!r}",
                 repr(streamed.text[shown]), hint="same tokens, other text: is a space lost between chunks?")


def _letters(text: str) -> str:
    return "".join(text.split())


def _parting(one: str, other: str) -> int:
    """The first character at which two texts differ."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
                min(len(one), len(other)))


@pytest.mark.requirement("http/stream-equals-whole", case="samples")
def test_stream_of_samples(engine: EngineUnderTest) -> None:
    """A stream that carries several samples: each complete."""
    ask, _ = engine.ask_samples(_samples(engine))
    engine.note = f"n {ask.n}"


@pytest.mark.requirement("http/finish-once", case="rings")
def test_finish_once(engine: EngineUnderTest) -> None:
    """Answers of many lengths, down to one token, that end beside each other: one finish reason each, the last."""
    engine.need_lengths()
    length, tokens = _sizes(engine)
    lengths = [1, 1, 2, 3, tokens // 2, tokens // 2 + 1, tokens]
    asks = [Ask(ring, count, f"request {i}", stream=i % 3 > 0)
            for i, (ring, count) in enumerate(zip(engine.rings([length] * len(lengths))[0], lengths, strict=True))]
    engine.case = f"{len(asks)} rings of {length} prompt tokens at once, of which {lengths} tokens are asked"
    for ask, answer in zip(asks, engine.ask(asks), strict=True):
        _check_end(ask, answer, ["length"])


@pytest.mark.requirement("http/finish-once", case="samples")
def test_finish_of_samples(engine: EngineUnderTest) -> None:
    """A stream that carries several samples: each ends once."""
    engine.need_lengths()
    ask, answer = engine.ask_samples(_samples(engine))
    engine.note = f"n {ask.n}"
    _check_end(ask, answer, ["length"] * ask.n)


@pytest.mark.requirement("http/finish-once", case="stop-token")
def test_finish_at_a_stop_token(engine: EngineUnderTest) -> None:
    """An answer that ends before max_tokens says so: 'stop', once."""
    engine.need("stop_token_ids", "an end before max_tokens")
    if not engine.is_probe:
        unsupported("which token comes, to end at, is known of the KV probe alone")
    length, tokens = _sizes(engine)
    ring = engine.rings([length])[0][0]
    at = engine.edge // 2
    for stream in (True, False):
        ask = Ask(ring, tokens, "A", stream=stream, stop_token_ids=(ring.expected(at)[-1],))
        engine.case = f"a ring of {length} prompt tokens, a stop token after {at} of {tokens} tokens"
        _check_end(ask, engine.ask([ask])[0], ["stop"])


@pytest.mark.requirement("http/max-tokens-1-joins-batch")
def test_single_tokens_join(engine: EngineUnderTest) -> None:
    """Requests of a single token join and leave a batch that decodes: the others lose no token."""
    engine.need_lengths()
    length, tokens = _sizes(engine)
    count = engine.num_rings(max(2, engine.profile.concurrency // 2), 2 * length)
    rings = engine.rings([length] * (2 * count))[0]
    running = [Ask(ring, tokens, f"running {i}", stream=i % 2 == 0) for i, ring in enumerate(rings[:count])]
    joining = [Ask(ring, 1, f"single token {i}", stream=i % 2 == 0) for i, ring in enumerate(rings[count:])]
    engine.case = f"{count} rings at once, greedy {tokens} tokens; rings of a single token, 2 at a time, meanwhile"
    pending, joined = engine.start(running), 0
    while not pending.done and joined < 2 * engine.profile.rings:
        answers = engine.ask(joining, concurrency=2)
        joined += len(answers)
        for ask, answer in zip(joining, answers, strict=True):
            _check_end(ask, answer, ["length"])
    pending.verify()
    engine.note = f"{joined} requests of a single token"


@pytest.mark.requirement("http/duplicate-request-ids")
def test_duplicate_request_ids(engine: EngineUnderTest) -> None:
    """Two requests under one id at once, streamed and whole: each gets its own answer, or one of them a 4xx."""
    length, tokens = _sizes(engine)
    for stream in (True, False):
        name = f"pabench-same-{int(engine.rng.integers(2**62)):x}"
        rings = engine.rings([length] * 2)[0]
        asks = [Ask(ring, tokens, "AB"[i], stream=stream, request_id=name) for i, ring in enumerate(rings)]
        engine.case = (f"2 rings at once under the one request id {name}, {'streamed' if stream else 'whole'}; greedy "
                       f"{tokens} tokens")
        answers = engine.start(asks).wait()
        served = [i for i, answer in enumerate(answers) if not refused(answer)]
        if not served:
            fail("one of both requests is served", "; ".join(f"{a.status}: {a.error}" for a in answers))
        engine.verify([asks[i] for i in served], [answers[i] for i in served])
        engine.note = f"{len(served)} of 2 served"
    _one_leaves(engine, length, tokens)


def _one_leaves(engine: EngineUnderTest, length: int, tokens: int) -> None:
    """Of two under one id, one client disconnects: the other is served as before, or was refused with a 4xx."""
    if not engine.can("stream"):
        return
    longer = min(_LONGER * tokens, engine.longest - length)
    for _ in range(_LEAVES):
        name = f"pabench-same-{int(engine.rng.integers(2**62)):x}"
        stays, leaves = (Ask(ring, longer, what, request_id=name)
                         for ring, what in zip(engine.rings([length] * 2)[0], ("who stays", "who leaves"), strict=True))
        engine.case = (f"2 rings at once under the one request id {name}, of which one client leaves after 2 of "
                       f"{longer} tokens")
        pending = engine.start([stays])
        engine.abort(leaves.request, 2)
        in_time = not pending.done
        answers = pending.wait()
        if not refused(answers[0]):
            engine.verify([stays], answers)
        if in_time:
            return
    engine.note += "; nobody could leave in time"


def _sizes(engine: EngineUnderTest) -> tuple[int, int]:
    """Prompt tokens and output tokens that fit any engine."""
    return min(engine.edge + 3, engine.longest // 3), min(2 * engine.edge, engine.longest // 3)


def _samples(engine: EngineUnderTest) -> Ask:
    """One request for several samples of a fork, streamed. Skips the test, as UNSUPPORTED, where there are none."""
    engine.need("n", "several samples in one stream")
    engine.need("sampling", "samples that differ")
    fork = fork_of_prompt_length(engine.spec, engine.rng, min(2 * engine.edge + 5, engine.longest // 3))
    tokens, temperature = len(fork.prompt), engine.sampling_temperature
    engine.case = f"one stream of {engine.profile.samples} samples; {tokens} tokens each, temperature {temperature:g}"
    return Ask(fork, tokens, "A", n=engine.profile.samples, temperature=temperature)


def _check_end(ask: Ask, answer: Completion, expected: list[str]) -> None:
    reasons = [choice.finish_reason for choice in answer.choices]
    if reasons != expected:
        fail(f"{ask.name} ends with the finish reasons {expected}", f"{reasons}")
    if ask.stream and answer.finish_events != len(expected):
        fail(f"{ask.name} carries {len(expected)} finish reasons, one a sample", f"{answer.finish_events}",
             hint="is the last chunk sent twice?")


@pytest.mark.requirement("http/usage-exact")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_usage_exact(engine: EngineUnderTest, stream: bool) -> None:
    """One sample and several; the same prompt twice, so that the second may be answered from cache."""
    if stream:
        engine.need("stream", "counts in a stream")
    if not engine.is_probe:
        engine.need("token_ids", "how many tokens a text has is known of the KV probe alone")
        engine.need_lengths()
    length = min(2 * engine.edge + 1, engine.longest // 3)
    ring = engine.rings([length])[0][0]
    counts = [1, 3] if engine.can("n") and engine.can("sampling") else [1]
    for n in counts:
        for tokens in (1, 7):
            engine.case = f"{length} prompt tokens, max_tokens {tokens}, n {n}, {'streamed' if stream else 'whole'}"
            # A ring leaves no choice at any temperature, and some engines refuse several samples without one.
            temperature = 0.0 if n == 1 else fork_temperature(engine.spec)
            ask = Ask(ring, tokens, "A", n=n, stream=stream, temperature=temperature)
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
