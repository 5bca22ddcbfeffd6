"""From exchanges to records, without an engine: what it claims, quotes or breaks the parser with."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from pabench.engines import dialect
from pabench.engines.base import Completion, GenerationRequest
from pabench.engines.openai import OpenAIDialect
from pabench.load.connection import Exchange
from pabench.load.records import RequestRecord
from pabench.load.schedule import ScheduledRequest
from pabench.load.settle import settle

KEY = "sk-proj-" + "0123456789" * 15


def request(index: int = 0, **fields: Any) -> ScheduledRequest:
    return ScheduledRequest(index, None, 0.0, GenerationRequest("a b", 8, **fields), 2)


def events(*said: object) -> bytes:
    return b"".join(b"data: " + orjson.dumps(one) + b"\n\n" for one in said) + b"data: [DONE]\n\n"


def chunk(text: str, finish: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def answered(*pieces: bytes, index: int = 0, times_s: Sequence[float] | None = None) -> Exchange:
    """Sent at 1.0, and ended at 2.0."""
    return Exchange(index, 0.9, sent_s=1.0, status=200, times_s=array("d", times_s or [1.5] * len(pieces)),
                    pieces=list(pieces), end_s=2.0)


def settled(
    requests: Sequence[ScheduledRequest], *exchanges: Exchange, name: str = "openai", api_key: str | None = None
) -> list[RequestRecord]:
    return list(settle(requests, {one.index: one for one in exchanges}, whole=lambda one: one, dialect=dialect(name),
                       spec=None, block_size=None, unsent_kind=None, fixed_length=False, api_key=api_key))


@pytest.mark.parametrize("error", [AttributeError("no get"), KeyError("x"), MemoryError(), ZeroDivisionError()])
def test_an_answer_that_no_parser_takes_costs_no_other_record(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = OpenAIDialect.parse_stream

    def parse(self: OpenAIDialect, status: int, chunks: Any, read_text: Any = None) -> Completion:
        if b"hostile" in chunks[0][1]:
            raise error
        return genuine(self, status, chunks, read_text)

    monkeypatch.setattr(OpenAIDialect, "parse_stream", parse)
    broken, good = settled([request(0), request(1)], answered(events("hostile")),
                           answered(events(chunk("a", "stop")), index=1))
    assert (broken.outcome, broken.error_kind) == ("error", "protocol")
    assert str(broken.error_text).startswith(type(error).__name__)
    assert good.outcome == "ok"


@pytest.mark.parametrize(("stream", "outcome"), [(True, "error"), (False, "ok")])
def test_tokens_that_usage_alone_tells_of_are_those_of_a_whole_answer(stream: bool, outcome: str) -> None:
    said = chunk("", "stop") | {"usage": {"prompt_tokens": 2, "completion_tokens": 8}}
    (record,) = settled([request(stream=stream)], answered(events(said) if stream else orjson.dumps(said)))
    assert (record.outcome, record.error_kind) == (outcome, "empty" if stream else None)
    assert (record.output_tokens, record.stream_tokens) == (8, 0)


@pytest.mark.parametrize("key", [KEY, "sk-s3cret"])
@pytest.mark.parametrize("said", [
    '{"message": "%s unknown key KEY"}' % ("x" * 52),     # a stream's body that is none
    'data: ["%s unknown key KEY"]\n\n' % ("x" * 59),
    'data: {"detail": "no such key KEY"}\n\n',
    "data: Error: KEY\n\n",
])
def test_a_key_is_taken_out_before_the_text_around_it_is_cut(said: str, key: str) -> None:
    body = said.replace("KEY", key).encode()
    (record,) = settled([request()], answered(body[:70], body[70:]), api_key=key)
    assert record.outcome == "error"
    assert key[:4] not in str(record.error_text)
    assert "***" in str(record.error_text)


def test_so_it_is_of_a_whole_answer() -> None:
    body = ('["%s unknown key sk-s3cret"]' % ("x" * 59)).encode()
    (record,) = settled([request(stream=False)], answered(body), api_key="sk-s3cret")
    assert str(record.error_text).endswith("x unknown key ***\"]'")


@pytest.mark.parametrize("key", [KEY, "sk-s3cret"])
def test_a_finish_reason_quotes_no_key(key: str) -> None:
    (record,) = settled([request()], answered(events(chunk("a", f"refused: {key}"))), api_key=key)
    (reason,) = record.finish_reasons
    assert key[:4] not in reason
    assert reason.startswith("refused: ***")


def test_nothing_arrives_before_it_was_asked_for() -> None:
    """The wall clock was set forward by an hour between the first arrival and its reading."""
    pieces = [events(chunk("a"))[:-14], events(chunk("b", "stop"))]
    (record,) = settled([request()], answered(*pieces, times_s=[-3599.0, 1.5]))
    assert (record.first_s, record.last_s, record.token_times_s) == (1.0, 1.5, [1.0, 1.5])
    times_s = [1.2, 1.5]
    (record,) = settled([request()], answered(*pieces, times_s=times_s))
    assert record.token_times_s == times_s
