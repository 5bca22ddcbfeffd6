"""When a request that the client cuts off has had its tokens."""

from __future__ import annotations

from typing import Any

from pabench.engines.base import Choice, Completion
from pabench.engines.openai import OpenAIDialect
from pabench.load.connection import Exchange
from pabench.load.cutting import TokenLimit


class Counting(OpenAIDialect):
    """Tells a token for each byte that is a "t", and counts how often it is asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def parse_stream(self, status: int, chunks: Any, read_text: Any = None) -> Completion:
        self.num_asked += 1
        return Completion([Choice(0, token_times_s=[time_s for time_s, piece in chunks for _ in range(
            piece.count(b"t"))])])


class Broken(OpenAIDialect):
    """Whose parser has a fault."""

    def parse_stream(self, status: int, chunks: Any, read_text: Any = None) -> Completion:
        raise AttributeError("no get")


def cut_after(limit: TokenLimit, pieces: list[bytes]) -> int | None:
    """Events until it is cut off; None: it is not."""
    exchange = Exchange(0, 0.0, status=200)
    for number, piece in enumerate(pieces, 1):
        exchange.times_s.append(float(number))
        exchange.pieces.append(piece)
        exchange.num_events += 1
        if limit(exchange):
            return number
    return None


def test_a_stream_without_tokens_is_parsed_a_few_times_and_not_at_every_few_events() -> None:
    dialect = Counting()
    assert cut_after(TokenLimit(8, dialect), [b"x"] * 5000) is None
    assert dialect.num_asked < 40


def test_tokens_that_come_one_by_one_are_cut_at_the_limit() -> None:
    assert cut_after(TokenLimit(8, Counting()), [b"t"] * 100) == 8
    assert cut_after(TokenLimit(100, Counting()), [b"x", *[b"t"] * 200]) == 101


def test_after_many_events_without_a_token_it_is_cut_a_quarter_later_at_most() -> None:
    cut = cut_after(TokenLimit(8, Counting()), [*[b"x"] * 1000, *[b"t"] * 1000])
    assert cut is not None
    assert 1008 <= cut <= 1260


def test_an_answer_that_no_parser_takes_is_not_cut_off_and_breaks_nothing() -> None:
    assert cut_after(TokenLimit(2, Broken()), [b"t"] * 20) is None
