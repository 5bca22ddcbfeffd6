"""What comes under load: requests that cannot fit, bad input, queues; and that all is given back after it."""

from __future__ import annotations

import math
import time
from http import HTTPStatus

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.exchange import Exchange
from pabench.conformance.failure import CaseFailed, fail
from pabench.conformance.gauges import idle_again, sampled
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask, check_form
from pabench.engines.base import GenerationRequest
from pabench.probe import Ring, check_answer

_GROWING_S = 10.0      # to look for a number of clients of whom some wait, and to ask them
_ROUNDS = 4            # of as many: who waits from the first to the last is overtaken by three times the clients
_MOST_CLIENTS = 1024   # connections
_SHORT_ANSWER = 8      # tokens that last long enough for others to wait meanwhile
_OVERRUN = 4           # times the first clients: as many at once where the pool is known, rather than twice and twice
_ROUTE = "/v1/completions"  # of requests that no dialect writes


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
    giant = engine.start_plain([GenerationRequest(Ring(oversized.tokens, oversized.salt, length).prompt, 4)])
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


@pytest.mark.requirement("http/oversized-rejected-others-served")
@pytest.mark.parametrize("limit", ["context-by-output", "pool-by-output"])
def test_output_oversized(engine: EngineUnderTest, limit: str) -> None:
    """A prompt that fits, whose answer does not: refused, or served as far as it goes; others come right behind."""
    context, capacity = engine.geometry.context_tokens, engine.geometry.capacity_tokens
    if limit == "pool-by-output" and (capacity is None or context is None or capacity + 4 * engine.edge > context):
        unsupported("every sequence that the context allows fits into the pool")
    room = capacity if limit == "pool-by-output" else context
    if room is None:
        unsupported("the engine does not tell its longest context")
    if capacity is not None and capacity < room:
        unsupported(f"a pool of {capacity} slots ends before the context of {room} tokens does")
    length, tokens = room - engine.edge, 4 * engine.edge
    *rings, oversized = engine.rings([min(engine.edge + 1, engine.longest // 4)] * 5)[0]
    engine.case = (f"a prompt of {length} tokens and max_tokens {tokens} where the {limit.partition('-')[0]} has "
                   f"{room}; 4 rings right behind it")
    ask = Ask(Ring(oversized.tokens, oversized.salt, length), tokens, "the oversized request")
    giant = engine.start_plain([ask.request])
    engine.start([Ask(ring, 8, f"request {i}") for i, ring in enumerate(rings)]).verify()
    answer = giant.wait()[0]
    if answer.status >= 500 or (answer.error is not None and answer.status < 400):
        fail("the oversized request is refused with a 4xx status, or ends when there is no room",
             f"HTTP {answer.status}: {(answer.error or '')[:200]}",
             hint="what it may need in the end is to be compared with the whole pool when it arrives")
    if answer.error is not None:
        return
    if (failure := check_form(ask, answer)) is not None:
        raise CaseFailed(failure)
    ids, reason = answer.choices[0].token_ids or [], answer.choices[0].finish_reason
    right = check_answer(ask.prompt, ids).ok
    if engine.is_probe and (reason != "length" or not right):
        fail(f"{ask.name} is answered as far as there is room, and ends with 'length'",
             f"{len(ids)} tokens, {'right' if right else 'not all right'}, ended with {reason!r}")


@pytest.mark.requirement("http/bad-input-then-healthy")
def test_bad_input_then_healthy(engine: EngineUnderTest) -> None:
    """Bodies that no engine can serve, sent while rings run: refused, and the rings are right, then and after."""
    _need_route(engine)
    bystanders, after = engine.rings([min(engine.edge + 3, engine.longest // 4)] * 3)
    tokens = min(4 * engine.edge, engine.longest // 2)
    engine.case = f"3 rings at once; greedy {tokens} tokens; malformed requests meanwhile"
    pending = engine.start([Ask(ring, tokens, f"bystander {i}") for i, ring in enumerate(bystanders)])
    statuses = {what: engine.post_raw(_ROUTE, body)[0] for what, body in _malformed(engine)}
    pending.verify()
    engine.case = f"3 rings at once, after malformed requests; greedy {tokens} tokens"
    engine.ask([Ask(ring, tokens, f"request {i}") for i, ring in enumerate(after)])
    if engine.can("running_metrics"):
        idle_again(engine, "does a refused request stay in the queue?")
    wrong = [f"HTTP {status} for {what}" for what, status in statuses.items() if not 400 <= status < 500]
    if wrong:
        fail(f"each of {len(statuses)} malformed requests is refused with a 4xx status", "; ".join(wrong),
             hint="check input before it is queued")


def _need_route(engine: EngineUnderTest) -> None:
    """Skip the test, as UNSUPPORTED, where the route of the malformed bodies refuses good ones too."""
    status, _ = engine.post_raw(_ROUTE, _good(engine))
    if status != HTTPStatus.OK:
        unsupported(f"a good request to {_ROUTE} is answered with HTTP {status}: what it says to others tells nothing")


def _good(engine: EngineUnderTest) -> dict[str, object]:
    return {"model": engine.facts.model, "prompt": "t300 t301 t302", "max_tokens": 4}


def _malformed(engine: EngineUnderTest) -> list[tuple[str, bytes | dict[str, object]]]:
    """What is wrong, and the body. Fields only where the engine has what they speak of.

    A body without a prompt is not among them, for OpenAI's own reference gives it a default; nor an empty prompt, which
    may be answered: see `test_empty_prompt_then_healthy`.
    """
    good = _good(engine)
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
                   ("a token id out of the vocabulary", good | {"prompt": [300, 2**31 - 1]})]
    return bodies


@pytest.mark.requirement("http/no-starvation")
def test_no_starvation(engine: EngineUnderTest) -> None:
    """Clients that come back as soon as they are served: whoever comes first has to end first, or nearly.

    So many clients that some have to wait: where all are served at once there is no order to keep.
    """
    clients, start = _first_clients(engine), time.monotonic()
    queue, worst, overtakers = _come_back(engine, clients, engine.profile.rounds)
    limit_s = (time.monotonic() - start) / engine.profile.rounds  # of one round, then of twice the clients, and so on
    growing = time.monotonic()
    while not queue:
        would_take_s = time.monotonic() - growing + 2 * limit_s * (1 + _ROUNDS)
        if would_take_s > _GROWING_S * engine.profile.patience or 2 * clients > _MOST_CLIENTS:
            unsupported(f"nobody waited among {clients} clients at once, more would take too long: ask an engine that "
                        "runs fewer sequences at once")
        clients, start = 2 * clients, time.monotonic()
        queue, *_ = _come_back(engine, clients, 1)
        limit_s = time.monotonic() - start
        if queue:
            queue, worst, overtakers = _come_back(engine, clients, _ROUNDS)
    engine.note = f"{clients} clients, {queue}, {worst} overtaken by {overtakers}"


def _first_clients(engine: EngineUnderTest) -> int:
    """Twice as many as the profile sends at once; or, where that brings them to wait at once, a quarter more than the
    pool holds. The last token of an answer takes no slot.
    """
    few, capacity = engine.profile.concurrency * 2, engine.geometry.capacity_tokens
    if capacity is None:
        return few
    held = capacity // (-(-(sum(_lengths(engine)) - 1) // engine.edge) * engine.edge)
    overrun = held + max(1, held // 4)
    return max(few, overrun) if overrun <= _OVERRUN * few else few


def _lengths(engine: EngineUnderTest) -> tuple[int, int]:
    """Tokens of a client's prompt and of its answer: together two blocks, whatever of the second is filled."""
    answer = min(engine.edge, max(_SHORT_ANSWER, engine.edge // 2))
    return min(engine.edge + 1, engine.longest // 4), min(answer, engine.longest // 2)


def _come_back(engine: EngineUnderTest, clients: int, rounds: int) -> tuple[str, str, int]:
    """How it shows that some waited, "" where it does not; who was overtaken most, and by how many."""
    length, tokens = _lengths(engine)
    rings = engine.rings([length] * engine.num_rings(clients, length))[0]
    asks = [Ask(rings[i % len(rings)], tokens, f"request {i}") for i in range(clients * rounds)]
    engine.case = f"{clients} clients, {rounds} rounds; {length} prompt tokens, greedy {tokens} tokens"
    pending = engine.start(asks, concurrency=clients)
    # Gauges that go by the clock show no queue that is shorter than their cadence.
    by_gauges = engine.can("running_metrics") and engine.cadence_s == 0
    waiting = 0.0
    while by_gauges and not pending.done:
        waiting = max(waiting, sampled(engine).waiting or 0)
        time.sleep(0.05)
    pending.verify()
    if any(exchange.num_busy for exchange in pending.exchanges):
        unsupported(f"of {clients} clients at once the engine refuses some (429) rather than let them wait")
    worst, overtakers = _most_overtaken(pending.exchanges)
    if overtakers > 2 * clients:
        fail(f"a request is overtaken by at most {2 * clients} that came later, twice the clients",
             f"{worst} was overtaken by {overtakers}",
             hint="is the queue served from its wrong end, or the oldest preempted first?")
    # A request that has just come waits for the end of a step, and the gauges may show that: no queue yet.
    behind = _waited(pending.exchanges[:clients])
    if not behind or (by_gauges and not waiting):
        return "", worst, overtakers
    return f"{behind} of the first waited for others to end", worst, overtakers


def _waited(exchanges: list[Exchange]) -> int:
    """How many of requests that were sent together had no token yet when an earlier one ended, of whose time they
    had been there for half: to send many takes a while, and who comes late has not waited.
    """
    sent = [each for each in exchanges if each.sent_s is not None and each.end_s is not None]
    times = sorted((each.sent_s or 0.0, each.end_s or 0.0, _first_token_s(each)) for each in sent)
    return sum(any(sent_s <= (earlier_s + end_s) / 2 and end_s < first_s for earlier_s, end_s, _ in times[:i])
               for i, (sent_s, _, first_s) in enumerate(times))


def _first_token_s(exchange: Exchange) -> float:
    """When the first token of its first choice came; before all else where none came."""
    choices = exchange.completion.choices[:1] if exchange.completion is not None else []
    return next((choice.token_times_s[0] for choice in choices if choice.token_times_s), -math.inf)


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
    _need_route(engine)
    model = engine.facts.model
    bodies: dict[str, dict[str, object]] = {"no prompt": {}, "an empty text": {"prompt": ""}}
    if engine.can("token_ids"):
        bodies["no token ids"] = {"prompt": []}
    ring = engine.rings([min(engine.edge + 3, engine.longest // 4)])[0][0]
    tokens = min(engine.edge, engine.longest // 2)
    for what, prompt in bodies.items():
        engine.case = f"{what}, alone in the engine; then a ring, greedy {tokens} tokens"
        status, body = engine.post_raw(_ROUTE, {"model": model, "max_tokens": 4, **prompt})
        if status >= 500:
            fail(f"{what} is answered or refused: a status below 500",
                 f"HTTP {status}: {body[:300].decode('utf-8', 'replace')}",
                 hint="a sequence without tokens reaches the model: refuse it, or begin it with BOS")
        engine.ask([Ask(ring, tokens, f"after {what}")])
