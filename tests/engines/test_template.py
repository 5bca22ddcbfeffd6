"""Events that are read by their bytes say what they say to a parser, whatever an engine sends."""

from __future__ import annotations

import json
from itertools import pairwise
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.engines import answers
from pabench.engines.answers import parse_stream_answer
from pabench.engines.base import Completion, TextReader
from pabench.engines.template import Template
from pabench.engines.word_count import WordCount
from pabench.errors import EngineProtocol
from pabench.probe import Codec

Chunks = list[tuple[float, bytes]]
TEXTS = [
    b" Paris", b"a", b"t300 ", b" t3", b"01", b"", b"text", b"token_ids", b"choices", b"content", b"m", b"another text",
    "é 日本".encode(), "\u2028".encode(), rb"\n", rb"\"", rb"\\", rb"a\u00e9", rb"\ud83d\ude00", rb"\ud83d", b"[7]",
    b"\xff", b"\xed\xa0\x80", b"a\tb", b"\x7f", b'"', b'","token_ids":[7', b"\\", b'x"}]}',
]
IDS = [b"7", b"8", b"7,8", b"7, 8", b"7 , 8", b"", b"0", b"007", b"-1", b"1.5", b",", b"7,", b" ", b"null", b"[7]",
       b"2147483647", b"2147483648", b"99999999999999999999", b"1e3", b"7]", b"7 8", b"\xd9\xa7"]

# The shapes of engines; %b stands for text and ids.
SHAPES = {
    "vllm": b'{"id":"c-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"%b",'
            b'"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":[%b]}],'
            b'"usage":null}',
    "vllm chat": b'{"id":"c-1","model":"m","choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,'
                 b'"finish_reason":null,"token_ids":[%b]}]}',
    "sglang": b'{"id": "c-1", "choices": [{"index": 0, "text": "%b", "logprobs": null, "finish_reason": null, '
              b'"matched_stop": null}], "usage": null}',
    "tgi": b'{"object":"text_completion","id":"","created":1,"model":"m","system_fingerprint":"a","choices":'
           b'[{"index":0,"text":"%b","logprobs":null,"finish_reason":""}]}',
    "a later second": b'{"object":"text_completion","id":"","created":2,"model":"m","system_fingerprint":"a","choices":'
                      b'[{"index":0,"text":"%b","logprobs":null,"finish_reason":""}]}',
    "thoughts": b'{"choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"%b"},'
                b'"finish_reason":null}]}',
    "thoughts and words": b'{"choices":[{"index":0,"delta":{"content":"%b","reasoning":"hm"}}]}',
    "another sample": b'{"choices":[{"index":1,"text":"%b","token_ids":[%b]}]}',
    "ids first": b'{"choices":[{"index":0,"token_ids":[7],"text":"%b"}]}',
    "said twice": b'{"choices":[{"index":0,"text":"a","text":"%b","token_ids":[7],"token_ids":[%b]}]}',
    "the same elsewhere": b'{"id":"a","choices":[{"index":0,"text":"%b","token_ids":[%b],"stop":[7],"said":"a"}]}',
    "elsewhere alone": b'{"choices":[{"index":0,"text":"a","said":"%b"}]}',
    "the end": b'{"choices":[{"index":0,"text":"%b","finish_reason":"length","token_ids":[%b]}]}',
    "an end of its own": b'{"choices":[{"index":0,"text":"%b","finish_reason":0}]}',
    "usage": b'{"choices":[{"index":0,"text":"%b"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}',
    "logprobs": b'{"choices":[{"index":0,"text":"%b","logprobs":{"tokens":["a"],"token_logprobs":[-0.5],'
                b'"top_logprobs":[{"a":-0.5,"b":-1}]}}]}',
    "of the prompt": b'{"choices":[{"index":0,"text":"%b","prompt_logprobs":[null]}]}',
    "error": b'{"choices":[{"index":0,"text":"%b"}],"error":{"message":"out of blocks"}}',
    "no number": b'{"choices":[{"index":0,"text":"%b","token_ids":[%b]}],"load":NaN}',
    "too deep": b'{"choices":[{"index":0,"text":"%b"}],"x":' + b"[" * 120 + b"]" * 120 + b"}",
    "no index": b'{"choices":[{"text":"%b"}]}', "two": b'{"choices":[{"text":"%b"},{"index":1,"text":"b"}]}',
    "nothing": b'{"choices":[]}', "no object": b'["%b"]', "no JSON": b'{"choices":[{"text":"%b"}]', "done": b"[DONE]",
}
LINES = st.sampled_from([b"data: %b\n\n"] * 8 + [
    b"data:%b\n\n", b"data: %b\r\n\r\n", b"data: %b \n\n", b"event: error\ndata: %b\n\n", b": ping\n\ndata: %b\n\n",
    b"data: %b\n", b"data: %b\n\n\n"])


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """Runs of one shape, as streams are, whose text and ids change."""
    line, shape = draw(LINES), SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    said = []
    for text, ids in draw(st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(IDS)), min_size=1, max_size=6)):
        said.append(line % (shape % (text, ids)[:shape.count(b"%b")]))
    return b"\0".join(said)


@st.composite
def streams(draw: st.DrawFn) -> Chunks:
    """Pieces that are an event each, but for some that are cut or joined, and for a byte that is another."""
    pieces = [piece for run in draw(st.lists(events(), max_size=5)) for piece in run.split(b"\0")]
    if pieces and draw(st.booleans()):
        at = draw(st.integers(0, len(pieces) - 1))
        place = draw(st.integers(0, len(pieces[at]) - 1))
        pieces[at] = pieces[at][:place] + draw(st.binary(max_size=2)) + pieces[at][place + 1:]
    body = b"".join(pieces)
    edges = {sum(map(len, pieces[:at])) for at in range(len(pieces) + 1)}
    edges -= draw(st.sets(st.sampled_from(sorted(edges)), max_size=3))
    edges |= draw(st.sets(st.integers(0, len(body)), max_size=3)) | {0, len(body)}
    return [(float(at), body[a:b]) for at, (a, b) in enumerate(pairwise(sorted(edges)))]


def read(chunks: Chunks, read_text: TextReader | None = None, *, tries: int = answers._TRIES) -> str:
    """All that is recorded of it; NaN is equal to itself here."""
    with mock.patch.object(answers, "_TRIES", tries):
        try:
            return repr(parse_stream_answer(200, chunks, read_text))
        except EngineProtocol as fault:
            return repr(fault)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_event_that_is_nearly_alike_is_read_as_a_parser_reads_it(shape: str) -> None:
    """Behind events that a template can be made of, in the shape of the others and in every other."""
    for first in ("vllm", "sglang", "the same elsewhere", shape):
        taught = [_event(first, text, ids) for text, ids in ((b"a", b"7"), (b"b", b"8"))]
        for text, ids in [(text, b"7") for text in TEXTS] + [(b"a", ids) for ids in IDS]:
            for last in (_event(shape, text, ids), *_cut_short(_event(shape, text, ids))):
                chunks = list(enumerate([*taught, last, taught[0]]))
                assert read(chunks) == read(chunks, tries=0)


@pytest.mark.parametrize(("shape", "told", "later"), [
    ("usage", b":3,", b":4,"), ("of the prompt", b"[null]", b'[null,{"7":{"logprob":-1}}]')])
def test_what_an_event_says_beside_its_text_counts_as_often_as_it_is_said(
    shape: str, told: bytes, later: bytes
) -> None:
    """The last usage counts, and not the last that was parsed. An event without a text makes no template."""
    first, second, last = (_event(shape, text, b"7") for text in (b"a", b"", b"c"))
    chunks = list(enumerate([first, second.replace(told, later), last]))
    assert read(chunks) == read(chunks, tries=0)


def _event(shape: str, text: bytes, ids: bytes) -> bytes:
    return b"data: " + SHAPES[shape] % (text, ids)[:SHAPES[shape].count(b"%b")] + b"\n\n"


def _cut_short(event: bytes) -> list[bytes]:
    """Without its end, with another one, and without what stands around its ids."""
    return [event[:-1], event[:-4] + b"\n\n", event.replace(b"null", b"1", 1), b"event: error\n" + event,
            event.partition(b'"token_ids":[')[0] + event[-6:]]


@given(streams(), st.sampled_from([None, Codec.decode]))
def test_every_stream_is_read_as_a_parser_reads_it(chunks: Chunks, read_text: TextReader | None) -> None:
    assert read(chunks, read_text) == read(chunks, read_text, tries=0)


def spelt(dumps: str, *texts: str, ids: bool, **more: object) -> Chunks:
    encode = orjson.dumps if dumps == "orjson" else lambda event: json.dumps(event).encode()
    said = [{"id": "x", "choices": [{"index": 0, "text": text, "finish_reason": None,
                                     **({"token_ids": [at, at + 1]} if ids else {})}], **more}
            for at, text in enumerate(texts)]
    return [(float(at), b"data: " + encode(event) + b"\n\n") for at, event in enumerate(said)]


@pytest.mark.parametrize("dumps", ["orjson", "json"])
@pytest.mark.parametrize("ids", [True, False])
def test_most_events_of_a_stream_are_not_parsed(dumps: str, ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    genuine = answers.load_json
    monkeypatch.setattr(answers, "load_json", lambda data: (parsed.append(data), genuine(data))[1])
    texts = [f" word{at}" for at in range(50)]
    texts[20] = "\n"  # spelt with a backslash
    chunks = spelt(dumps, *texts, ids=ids)
    answer: Completion = parse_stream_answer(200, chunks)
    (choice,) = answer.choices
    assert len(parsed) == 2
    assert choice.text == "".join(texts)
    assert choice.token_ids == ([each for at in range(50) for each in (at, at + 1)] if ids else None)
    assert choice.token_times_s == [time_s for time_s in map(float, range(50)) for _ in range(1 + ids)]


@pytest.mark.parametrize("pieces", [
    [" t3", " t4", " t5"], ["t3 ", "t4 ", "t5 "], [" t3 ", " t4 "], [" t3", " t4 ", " t5"], ["t3", " t4", " t5"],
    [" t3", "t4 ", "t5 "], [" ", " t3 t4"], [" t3 t4", " "], [" t3", " ", " t4"], ["t3", "4 "], [" t3", " nonsense"],
])
@pytest.mark.parametrize("tail", ["", "t1", "t1 ", " "])
def test_pieces_of_a_word_each_are_counted_together_as_one_by_one(pieces: list[str], tail: str) -> None:
    together, alone = WordCount(Codec.decode), WordCount(Codec.decode)
    assert together.add(tail) == alone.add(tail)
    counts = [alone.add(piece) for piece in pieces]
    if together.add_one_each(pieces):
        assert counts == [1] * len(pieces)
    else:
        for piece in pieces:
            together.add(piece)
    assert [together.add(piece) for piece in ("7", " t8", "9")] == [alone.add(piece) for piece in ("7", " t8", "9")]


def test_a_stream_of_a_word_a_chunk_is_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine tells no ids too: else this is the dearest part of a run."""
    alone: list[bytes] = []
    genuine = Template.read
    monkeypatch.setattr(Template, "read", lambda self, piece: (alone.append(piece), genuine(self, piece))[1])
    chunks = spelt("orjson", *(f" t{300 + at}" for at in range(256)), ids=False)
    (choice,) = parse_stream_answer(200, chunks, Codec.decode).choices
    assert choice.token_ids == list(range(300, 556))
    assert choice.token_times_s == list(map(float, range(256)))
    assert len(alone) < 64  # those of the group in which the template was found


def test_a_stream_whose_events_are_never_alike_makes_no_more_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Template | None] = []
    genuine = answers.template_of
    monkeypatch.setattr(answers, "template_of", lambda *args: (made.append(genuine(*args)), made[-1])[1])
    chunks = [chunk for at in range(50) for chunk in spelt("orjson", "a", ids=False, number=at)]
    assert parse_stream_answer(200, chunks).choices[0].text == "a" * 50
    assert len(made) == answers._TRIES
