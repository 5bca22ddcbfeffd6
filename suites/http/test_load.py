"""What comes under load: aborts, requests that cannot fit, bad input, queues; and that all is given back after it."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import replace

import pytest

from pabench.conformance.engine import EngineUnderTest, refused, unsupported
from pabench.conformance.exchange import Exchange
from pabench.conformance.failure import fail
from pabench.conformance.verify import Ask
from pabench.engines.base import GenerationRequest
from pabench.probe import Ring
from pabench.telemetry.vocabulary import KVSample

_BEFORE_ABORT = (8, 64, 256)  # tokens of each sample
_SHORTEST_ABORTED = 8         # tokens
_ENOUGH_SAMPLES = 10
_TELLING_S = 0.3  # a request that has less left to do than this might just have ended


def idle(sample: KVSample) -> bool:
    """Whether nothing runs or waits."""
    return sample.running == 0 and not sample.waiting


def settled(engine: EngineUnderTest, baseline: KVSample, within_s: float) -> KVSample:
    """The gauges once the engine is idle and holds no more than before, or when the time is up."""
    return engine.metrics_when_stable(lambda now: given_back(now, baseline), within_s=within_s)


def given_back(sample: KVSample, baseline: KVSample) -> bool:
    """Whether the engine is idle and holds no more than before."""
    return idle(sample) and (sample.kv_usage or 0.0) <= (baseline.kv_usage or 0.0) + 1e-6


def state(sample: KVSample | None) -> str:
    """The gauges in words."""
    if sample is None:
        return "no metrics"
    usage = "" if sample.kv_usage is None else f", KV use {sample.kv_usage:.4f}"
    return f"{sample.running:g} running, {sample.waiting or 0:g} waiting{usage}"


@pytest.mark.requirement("http/abort-frees")
@pytest.mark.parametrize("n", [1, 4], ids=["one-sample", "four-samples"])
def test_abort_frees(engine: EngineUnderTest, n: int) -> None:
    """A long request whose client leaves after its first tokens: gone long before it would have ended."""
    engine.need("running_metrics", "whether a request still runs shows in the gauges alone")
    if n > 1:
        engine.need("n", "several samples")
    baseline = engine.metrics_when_stable(idle, within_s=engine.profile.settle_s)
    if not idle(baseline):
        fail("the engine is idle before the case", state(baseline))
    prompt = engine.plain_prompt(engine.edge + 3)
    share = (engine.geometry.capacity_tokens or engine.longest) // n  # so that nothing has to be preempted
    tokens = min(engine.longest, share) - engine.edge - 8
    if tokens < _SHORTEST_ABORTED:
        unsupported(f"{engine.block_text}: no room for an answer long enough to be aborted")
    engine.case = f"n {n}, max_tokens {tokens}; the client disconnects after its first tokens"
    left_s = _start_and_abort(engine, GenerationRequest(prompt, tokens, n=n, temperature=1.0 if n > 1 else 0.0))
    if left_s < _TELLING_S:
        unsupported(f"the longest sequence that fits ends within {left_s:.2f} s: too soon to tell an abort from an end")
    within_s = min(engine.profile.settle_s, left_s / 3)
    start = time.monotonic()
    sample = settled(engine, baseline, within_s)
    if not given_back(sample, baseline):
        fail(f"idle again within {within_s:.1f} s: {state(baseline)}", state(sample),
             hint="the request runs on without a reader: does the disconnect reach all of its samples, and are the "
                  "blocks of an aborted sequence freed?")
    engine.note = f"free after {time.monotonic() - start:.2f} s, would have run {left_s:.1f} s more"


def _start_and_abort(engine: EngineUnderTest, request: GenerationRequest) -> float:
    """Seconds that the aborted request would have gone on, at the pace of the tokens that came.

    A busy engine may send many tokens in one piece, which shows no pace: then once more, and later.
    """
    pace_s, received = 0.0, 0
    for after in _BEFORE_ABORT:
        answer = engine.abort(request, min(after, request.max_tokens // 4) * request.n)
        while request.n > 1 and refused(answer):
            request = replace(request, n=engine.fewer_samples(request.n, answer))
            answer = engine.abort(request, min(after, request.max_tokens // 4) * request.n)
        if answer.error is not None:
            fail("the request is served", f"HTTP {answer.status}: {answer.error[:200]}")
        times = [choice.token_times_s for choice in answer.choices if len(choice.token_times_s) > 1]
        received = max(map(len, times), default=0)
        gaps = [later - earlier for each in times for earlier, later in itertools.pairwise(each)]
        # The median, since a stall would make the rest look longer than it is; the mean where tokens come in pieces.
        pace_s = (statistics.median(gaps) or statistics.mean(gaps)) if gaps else 0.0
        if pace_s > 0:
            break
    if pace_s == 0:
        unsupported("all tokens come at once, so that nobody can tell when a request would have ended")
    return pace_s * (request.max_tokens - received)


@pytest.mark.requirement("http/abort-frees", case="bystanders")
def test_abort_leaves_others_alone(engine: EngineUnderTest) -> None:
    """Several run, clients of some leave: the answers of the others are whole and right."""
    ring_len, tokens = min(engine.edge + 5, engine.longest // 4), min(4 * engine.edge, engine.longest // 2)
    rings = engine.rings([ring_len] * 5)[0]
    engine.case = f"4 rings at once; greedy {tokens} tokens; 3 other clients disconnect meanwhile"
    pending = engine.start([Ask(ring, tokens, f"bystander {i}") for i, ring in enumerate(rings[:4])])
    for after in (1, 2, 0):
        engine.abort(GenerationRequest(rings[4].prompt, tokens), after)
    pending.verify()
    if engine.can("running_metrics"):
        sample = engine.metrics_when_stable(idle, within_s=engine.profile.settle_s)
        if not idle(sample):
            fail("idle after all have ended", state(sample))


@pytest.mark.requirement("http/oversized-rejected-others-served")
@pytest.mark.parametrize("limit", ["context", "pool"])
def test_oversized_rejected(engine: EngineUnderTest, limit: str) -> None:
    """A prompt longer than the context, and one that fits it but not the pool; others come right behind."""
    context, capacity = engine.geometry.context_tokens, engine.geometry.capacity_tokens
    if limit == "pool":
        if capacity is None or context is None or capacity + 2 * engine.edge > context:
            unsupported("every sequence that the context allows fits into the pool")
        length = capacity + engine.edge
    else:
        if context is None:
            unsupported("the engine does not tell its longest context")
        length = context + engine.edge
    ring_len = min(engine.edge + 1, engine.longest // 4)
    *rings, oversized = engine.rings([ring_len] * 5)[0]
    engine.case = f"a prompt of {length} tokens where the {limit} has {capacity if limit == 'pool' else context}; " \
                  "4 rings right behind it"
    giant = engine.start([Ask(Ring(oversized.tokens, oversized.salt, length), 4, "oversized")])
    start = time.monotonic()
    others = engine.start([Ask(ring, 8, f"request {i}") for i, ring in enumerate(rings)])
    while not (giant.done and others.done) and time.monotonic() - start < engine.profile.refusal_s:
        time.sleep(0.02)
    if not giant.done:
        served = "the others were served" if others.done else "the others wait as well"
        fail(f"an answer that refuses within {engine.profile.refusal_s:g} s", f"no answer; {served}",
             hint="it waits for room that will never come: compare with the whole pool when the request arrives")
    answer = giant.wait()[0]
    if answer.error is None:
        fail("the oversized request is refused", f"HTTP {answer.status} with {len(answer.choices)} answers",
             hint="was the prompt cut without a word?")
    if answer.status >= 500:
        fail("the oversized request is refused with a 4xx status", f"HTTP {answer.status}: {answer.error[:200]}")
    others.verify()


@pytest.mark.requirement("http/gauges-return-to-idle")
def test_gauges_return_to_idle(engine: EngineUnderTest) -> None:
    """Load with aborts and refusals in it; the gauges are read during it and after it."""
    baseline = engine.metrics_when_stable(idle, within_s=engine.profile.settle_s)
    if not idle(baseline):
        fail("the engine is idle before the case", state(baseline))
    length, tokens = min(2 * engine.edge + 1, engine.longest // 3), min(4 * engine.edge, engine.longest // 2)
    count = engine.profile.concurrency
    requests = [GenerationRequest(engine.plain_prompt(length), tokens) for _ in range(count)]
    engine.case = f"{count} requests of {length} prompt tokens at once, {tokens} tokens each; 2 more are aborted"
    seen: list[KVSample] = []
    while len(seen) < _ENOUGH_SAMPLES and engine.time_left_s > engine.profile.case_timeout_s / 2:
        seen += _watch_load(engine, requests)
    after = settled(engine, baseline, engine.profile.settle_s)
    for sample in (baseline, *seen, after):
        if not 0 <= (sample.kv_usage or 0) <= 1 or (sample.running or 0) < 0 or (sample.waiting or 0) < 0:
            fail("KV use between 0 and 1, counts not below 0", state(sample),
                 hint="is a block given back twice, or a request counted out twice?")
    shown = any(sample.running for sample in seen) and any(sample.kv_usage for sample in seen)
    if not shown and len(seen) >= _ENOUGH_SAMPLES:
        fail("the gauges show the load while it lasts", f"{len(seen)} samples, all without running requests or KV use")
    if not given_back(after, baseline):
        fail(f"idle again within {engine.profile.settle_s:g} s: {state(baseline)}", state(after),
             hint="blocks of an ended or aborted request were not given back")
    engine.note = f"{len(seen)} samples under load, at most {max(sample.running or 0 for sample in seen):g} running"


def _watch_load(engine: EngineUnderTest, requests: list[GenerationRequest]) -> list[KVSample]:
    """The gauges while `requests` run and clients of two more disconnect."""
    pending = engine.start_plain(requests)
    seen = []
    for after in (0, 1):
        engine.abort(requests[0], after)
        seen.append(_sample(engine))
    while not pending.done:
        seen.append(_sample(engine))
        time.sleep(0.02)
    for answer in pending.wait():
        if answer.error is not None:
            fail("every request is served", answer.error)
    return seen


def _sample(engine: EngineUnderTest) -> KVSample:
    sample = engine.metrics()
    if sample is None:
        unsupported("the engine shows no metrics")
    return sample


@pytest.mark.requirement("http/bad-input-then-healthy")
def test_bad_input_then_healthy(engine: EngineUnderTest) -> None:
    """Bodies that no engine can serve, sent while rings run: refused, and the rings are right, then and after."""
    bystanders, after = engine.rings([min(engine.edge + 3, engine.longest // 4)] * 3)
    tokens = min(4 * engine.edge, engine.longest // 2)
    engine.case = f"3 rings at once; greedy {tokens} tokens; malformed requests meanwhile"
    pending = engine.start([Ask(ring, tokens, f"bystander {i}") for i, ring in enumerate(bystanders)])
    statuses = {what: engine.post_raw("/v1/completions", body)[0] for what, body in _malformed(engine)}
    pending.verify()
    engine.case = f"3 rings at once, after malformed requests; greedy {tokens} tokens"
    engine.ask([Ask(ring, tokens, f"request {i}") for i, ring in enumerate(after)])
    if engine.can("running_metrics"):
        sample = engine.metrics_when_stable(idle, within_s=engine.profile.settle_s)
        if not idle(sample):
            fail("idle after all have ended", state(sample), hint="does a refused request stay in the queue?")
    wrong = [f"HTTP {status} for {what}" for what, status in statuses.items() if not 400 <= status < 500]
    if wrong:
        fail(f"each of {len(statuses)} malformed requests is refused with a 4xx status", "; ".join(wrong),
             hint="check input before it is queued")


def _malformed(engine: EngineUnderTest) -> list[tuple[str, bytes | dict[str, object]]]:
    """What is wrong, and the body. Fields only where the engine has what they speak of.

    A body without a prompt is not among them: OpenAI's own reference gives it a default.
    """
    good: dict[str, object] = {"model": engine.facts.model, "prompt": "t300 t301 t302", "max_tokens": 4}
    bodies: list[tuple[str, bytes | dict[str, object]]] = [
        ("a body that is not JSON", b"{"),
        ("a body that is a JSON list", b"[]"),
        ("a prompt that is an object", good | {"prompt": {"text": "t300"}}),
        ("max_tokens \"many\"", good | {"max_tokens": "many"}),
        ("max_tokens -1", good | {"max_tokens": -1}),
    ]
    if engine.can("sampling"):
        bodies += [("temperature -1", good | {"temperature": -1.0}), ("top_p 2", good | {"top_p": 2.0})]
    if engine.can("n"):
        bodies += [("n 0", good | {"n": 0}), ("n -1", good | {"n": -1})]
    if engine.can("token_ids"):
        bodies += [("a token id below 0", good | {"prompt": [300, -1]}),
                   ("a token id out of the vocabulary", good | {"prompt": [300, 2**31 - 1]}),
                   ("a prompt of no tokens", good | {"prompt": []})]
    return bodies


@pytest.mark.requirement("http/no-starvation")
def test_no_starvation(engine: EngineUnderTest) -> None:
    """Clients that come back as soon as they are served: whoever comes first has to end first, or nearly."""
    profile = engine.profile
    clients, length, tokens = profile.concurrency * 2, min(engine.edge + 1, engine.longest // 4), engine.edge
    tokens = min(tokens, engine.longest // 2)
    rings = engine.rings([length] * engine.num_rings(clients, length))[0]
    asks = [Ask(rings[i % len(rings)], tokens, f"request {i}") for i in range(clients * profile.rounds)]
    engine.case = f"{clients} clients, {profile.rounds} rounds; {length} prompt tokens, greedy {tokens} tokens"
    pending = engine.start(asks, concurrency=clients)
    waiting = 0.0
    while engine.can("running_metrics") and not pending.done:
        waiting = max(waiting, _sample(engine).waiting or 0)
        time.sleep(0.05)
    pending.verify()
    worst, overtakers = _most_overtaken(pending.exchanges)
    if overtakers > 2 * clients:
        fail(f"a request is overtaken by at most {2 * clients} that came later, twice the clients",
             f"{worst} was overtaken by {overtakers}",
             hint="is the queue served from its wrong end, or the oldest preempted first?")
    queue = f"at most {waiting:g} waiting" if waiting else "no queue seen"
    engine.note = f"{queue}, overtaken by at most {overtakers}"


def _most_overtaken(exchanges: list[Exchange]) -> tuple[str, int]:
    """The request that most others overtook: sent later, ended earlier."""
    times = [(each.name, each.sent_s or 0.0, each.end_s or math.inf) for each in exchanges]
    counts = {name: sum(sent < other_sent and other_end < end for _, other_sent, other_end in times)
              for name, sent, end in times}
    worst = max(counts, key=counts.__getitem__)
    return worst, counts[worst]


@pytest.mark.requirement("http/empty-prompt-then-healthy")
def test_empty_prompt_then_healthy(engine: EngineUnderTest) -> None:
    """No prompt and empty ones, each alone in the engine: nothing else may fill the batch and hide the fault.

    The last case of all: engines have ended on it.
    """
    model = engine.facts.model
    bodies: dict[str, dict[str, object]] = {"no prompt": {}, "an empty text": {"prompt": ""}}
    if engine.can("token_ids"):
        bodies["no token ids"] = {"prompt": []}
    ring = engine.rings([min(engine.edge + 3, engine.longest // 4)])[0][0]
    tokens = min(engine.edge, engine.longest // 2)
    for what, prompt in bodies.items():
        engine.case = f"{what}, alone in the engine; then a ring, greedy {tokens} tokens"
        status, body = engine.post_raw("/v1/completions", {"model": model, "max_tokens": 4, **prompt})
        if status >= 500:
            fail(f"{what} is answered or refused: a status below 500",
                 f"HTTP {status}: {body[:300].decode('utf-8', 'replace')}",
                 hint="a sequence without tokens reaches the model: refuse it, or begin it with BOS")
        engine.ask([Ask(ring, tokens, f"after {what}")])
