"""After the run: exchanges -> records. Every scheduled request gets exactly one outcome here."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pabench.engines.base import Choice, Completion, Dialect
from pabench.engines.cleaning import clean, masked, without_key
from pabench.load.connection import Exchange
from pabench.load.records import OUTCOMES, RequestRecord
from pabench.load.schedule import ScheduledRequest
from pabench.load.verify import Diagnoses, Verification, verify_beams, verify_choices
from pabench.probe import Codec, ProbeSpec

_ABORTED = {"planned", "interrupt"}
Whole = Callable[[Exchange], Exchange]
# Finish reasons of an answer that the engine gave up: vLLM and SGLang say "abort", TensorRT-LLM the others.
_BROKEN_OFF = frozenset({"abort", "aborted", "cancelled", "canceled", "error", "timeout"})
Verdict = tuple[str, str | None, str | None]  # outcome, error kind, error text


def settle(
    scheduled: Sequence[ScheduledRequest], exchanges: Mapping[int, Exchange], *, whole: Whole,
    dialect: Dialect, spec: ProbeSpec | None, block_size: int | None, unsent_kind: str | None, fixed_length: bool,
    api_key: str | None = None,
) -> Iterator[RequestRecord]:
    """A record for each scheduled request, in order. `exchanges` by index; those without one were never sent.

    Their times count from the run's start. `whole`: brings back what the journal has of one.
    `unsent_kind`: why requests were not sent. `fixed_length`: the engine has "ignore_eos", so that an answer of
    another length than asked for is an error. `api_key`: an engine may quote it, and no record does.
    """
    diagnoses = None if spec is None else Diagnoses(scheduled, exchanges, spec, block_size)
    for request in scheduled:
        exchange = exchanges.get(request.index)
        if exchange is None:
            yield _unsent(request, unsent_kind)
            continue
        key = api_key if exchange.kept_at is None else None  # a journal holds none
        record, wrong_choice = _settle_one(request, _as_it_was(whole(exchange), key), dialect, fixed_length)
        if record.error_text is not None:  # the key first: what is cut to its length could end inside it
            record.error_text = clean(without_key(record.error_text, api_key))
        record.finish_reasons = [without_key(reason, api_key) for reason in record.finish_reasons]
        if wrong_choice is not None and diagnoses is not None:
            record.diagnosis = diagnoses.of(request.index, wrong_choice.token_ids or ())
        yield record


def count_outcomes(records: Iterable[RequestRecord]) -> dict[str, int]:
    """Requests by outcome, all outcomes named; they add up to the records."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for record in records:
        counts[record.outcome] += 1
    return counts


def _blank(request: ScheduledRequest, intended_s: float) -> RequestRecord:
    return RequestRecord(
        request_id=request.name, index=request.index, user=request.user,
        intended_s=intended_s, prompt_tokens=request.prompt_tokens, max_tokens=request.request.max_tokens,
        n=request.request.n, priority=request.request.priority,
    )


def _unsent(request: ScheduledRequest, kind: str | None) -> RequestRecord:
    # In a closed loop nobody knows when its turn would have come: NaN, which the tables hold as such.
    record = _blank(request, request.intended_s if request.intended_s is not None else float("nan"))
    record.error_kind = kind
    return record


def _as_it_was(exchange: Exchange, api_key: str | None) -> Exchange:
    """Without the key, and nothing arrived before the request was sent: where the wall clock is set forward between an
    arrival and its reading, the kernel's stamp is too old by that.
    """
    if api_key is not None:
        body, at, pieces = masked(b"".join(exchange.pieces), exchange.status, api_key), 0, []
        for piece in exchange.pieces:
            pieces.append(body[at:at + len(piece)])
            at += len(piece)
        exchange = replace(exchange, pieces=pieces)
    sent_s = exchange.sent_s
    if sent_s is not None and min(exchange.times_s, default=sent_s) < sent_s:
        exchange = replace(exchange, times_s=array("d", [max(time_s, sent_s) for time_s in exchange.times_s]))
    return exchange


def _settle_one(
    request: ScheduledRequest, exchange: Exchange, dialect: Dialect, fixed_length: bool
) -> tuple[RequestRecord, Choice | None]:
    record = _blank(request, exchange.intended_s)
    record.asked_s, record.sent_s, record.end_s = exchange.asked_s, exchange.sent_s, exchange.end_s
    record.http_status = exchange.status
    answer, protocol_error = _parse(request, exchange, dialect)
    _take_tokens(record, answer, most=request.request.n * request.request.max_tokens)
    verification = None
    if request.oracle is not None and exchange.status == 200:
        verify = verify_beams if request.request.beam_width else verify_choices
        verification = verify(request.oracle, answer.choices)
        record.verified_tokens, record.wrong_tokens = verification.verified, verification.wrong
    outcome, kind, text = _judge(request, record, exchange, answer, protocol_error, verification, fixed_length)
    record.outcome, record.error_kind, record.error_text = outcome, kind, text
    return record, None if verification is None else verification.wrong_choice


def _parse(
    request: ScheduledRequest, exchange: Exchange, dialect: Dialect
) -> tuple[Completion, str | None]:
    """The answer, and what makes it no answer of this dialect."""
    if exchange.status is None:
        return Completion(status=0), None
    read_text = Codec.decode if request.oracle is not None else None
    try:
        if request.request.stream:
            chunks = list(zip(exchange.times_s, exchange.pieces, strict=True))
            return dialect.parse_stream(exchange.status, chunks, read_text), None
        if exchange.fault is not None:
            return Completion(status=exchange.status), None
        return dialect.parse(exchange.status, b"".join(exchange.pieces), read_text), None
    except Exception as error:
        # An engine can send anything at all, and no list of errors is complete: one answer that the parser cannot take
        # must not cost the records of the others, which would be lost with every later reading of the run too.
        return Completion(status=exchange.status), f"{type(error).__name__}: {error}"


def _take_tokens(record: RequestRecord, answer: Completion, most: int) -> None:
    """What came and when, into `record`. `most`: tokens that were asked for, over all samples."""
    times_s: list[float] = []
    indexes: list[int] = []
    all_ids: list[int] = []
    aligned = True
    for choice in answer.choices:
        ids, times = choice.token_ids, choice.token_times_s
        record.stream_tokens += len(times) if ids is None else len(ids)
        aligned = aligned and ids is not None and len(ids) == len(times)
        times_s += times
        indexes += [choice.index] * len(times)
        all_ids += ids or ()
        if choice.finish_reason is not None:
            record.finish_reasons.append(choice.finish_reason)
    if len(answer.choices) > 1:
        order = sorted(range(len(times_s)), key=times_s.__getitem__)
        times_s, indexes = [times_s[at] for at in order], [indexes[at] for at in order]
        all_ids = [all_ids[at] for at in order] if aligned else []
    if answer.usage is not None:
        record.usage_prompt_tokens = answer.usage.prompt_tokens
        record.output_tokens = answer.usage.completion_tokens
        record.cached_tokens = answer.usage.cached_tokens
        if all(choice.token_ids is None and choice.logprobs is None for choice in answer.choices):
            total = min(record.output_tokens or 0, most)  # usage may claim anything
            times_s, indexes = (_by_usage(each, total) for each in (times_s, indexes))
    record.token_times_s, record.token_choices, record.token_ids = times_s, indexes, all_ids if aligned else []
    if times_s:
        record.first_s, record.last_s = times_s[0], times_s[-1]


def _by_usage(chunks: list[Any], total: int) -> list[Any]:
    """An entry of a chunk for each of its tokens: text alone does not tell how many it holds, so they share evenly what
    usage counts. As it is where usage counts no more than there are chunks.
    """
    if total <= len(chunks) or not chunks:
        return chunks
    ends = [total * at // len(chunks) for at in range(len(chunks) + 1)]
    return [entry for entry, (begin, end) in zip(chunks, pairwise(ends), strict=True) for _ in range(begin, end)]


def _judge(
    request: ScheduledRequest, record: RequestRecord, exchange: Exchange, answer: Completion,
    protocol_error: str | None, verification: Verification | None, fixed_length: bool,
) -> Verdict:
    """The one outcome. A fault of the wire comes first, then what the engine says, then what it should have said."""
    verdict = _judge_wire(exchange, answer, protocol_error)
    wrong = verification is not None and verification.wrong > 0
    if verdict is None:
        verdict = ("wrong", None, None) if wrong else _judge_content(request, record, answer, fixed_length)
    if wrong and verdict[0] == "aborted":
        return "wrong", verdict[1], None
    return verdict


def _judge_wire(exchange: Exchange, answer: Completion, protocol_error: str | None) -> Verdict | None:
    fault = exchange.fault
    if fault in _ABORTED:
        return "aborted", fault, None
    if fault == "timeout":
        return "timeout", None, exchange.fault_text
    if exchange.status is not None and exchange.status != 200:
        return "error", "http", answer.error or f"HTTP {exchange.status}"
    if fault is not None:
        return "error", fault, exchange.fault_text
    if protocol_error is not None:
        return "error", "protocol", protocol_error
    if answer.error is not None:
        return "error", "stream", answer.error
    return None


def _judge_content(
    request: ScheduledRequest, record: RequestRecord, answer: Completion, fixed_length: bool
) -> Verdict:
    # Usage alone tells of the tokens of a whole answer; of a stream it claims what nobody has seen.
    if record.stream_tokens == 0 and (request.request.stream or not record.output_tokens):
        return "error", "empty", "the answer ended without a token"
    if answer.truncated:
        return "error", "truncated", "the stream ended without a finish reason for every sample"
    n, length = request.request.n, request.request.max_tokens
    if len(answer.choices) != n:
        return "error", "length", f"asked for {n} samples, got {len(answer.choices)}"
    ended = [choice.finish_reason for choice in answer.choices if choice.finish_reason in _BROKEN_OFF]
    if ended:
        return "error", "stream", f"the engine broke the answer off: its finish reason is {ended[0]!r}"
    got = _lengths(answer)
    early = [choice.finish_reason for choice in answer.choices if choice.finish_reason not in (None, "length")]
    if fixed_length and got is None and early:
        return "error", "length", f"asked for {n} x {length} tokens, the answer ended before, by {early[0]!r}"
    if (request.oracle is not None or fixed_length) and got is not None and got not in ([length] * n, [n * length]):
        return "error", "length", f"asked for {n} x {length} tokens, got {' + '.join(map(str, got))}"
    return "ok", None, None


def _lengths(answer: Completion) -> list[int] | None:
    """Tokens of each sample by its ids, else of all together by usage; None where neither tells them."""
    ids = [choice.token_ids for choice in answer.choices if choice.token_ids is not None]
    if len(ids) == len(answer.choices):
        return [len(one) for one in ids]
    total = None if answer.usage is None else answer.usage.completion_tokens
    return None if total is None else [total]
