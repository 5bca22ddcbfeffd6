"""The event reader against streams as servers write them, cut at every byte."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.engines import sse
from pabench.engines.sse import read_events
from pabench.errors import EngineProtocol


def datas(body, cuts=()):
    edges = [0, *sorted(cuts), len(body)]
    chunks = [(float(i), body[a:b]) for i, (a, b) in enumerate(pairwise(edges))]
    return [(event.name, event.data, event.complete) for event in read_events(chunks)]


def test_data_with_and_without_a_space():
    assert datas(b"data: a\n\ndata:b\n\ndata:  c\n\n") == [("", b"a", True), ("", b"b", True), ("", b" c", True)]


def test_crlf_comments_and_names():
    body = b": keep-alive\r\n\r\nevent: error\r\ndata: x\r\nid: 7\r\n\r\ndata: y\r\n\r\n"
    assert datas(body) == [("error", b"x", True), ("", b"y", True)]


def test_several_data_lines_are_one_event():
    assert datas(b"data: a\ndata: b\n\n") == [("", b"a\nb", True)]


def test_the_end_without_a_blank_line_leaves_an_incomplete_event():
    assert datas(b"data: a\n\ndata: b") == [("", b"a", True), ("", b"b", False)]
    assert datas(b"data: a\n\ndata: b\n") == [("", b"a", True), ("", b"b", False)]


def test_a_name_without_data_names_no_later_event():
    assert datas(b"event: ping\n\ndata: a\n\n") == [("", b"a", True)]


def test_an_error_without_data_says_what_its_comments_say():
    """As Dynamo's."""
    assert datas(b"data: a\n\nevent: error\n: worker died\n\n: alive\n\n") == [
        ("", b"a", True), ("error", b"worker died", True)]
    assert datas(b"event: error\n: twice\ndata: x\n\n") == [("error", b"x", True)]


@pytest.mark.parametrize("empty", [b"data:\n\n", b"data: \n\n", b"event: ping\ndata:\n\n", b"data:\r\n\r\n", b"data:"])
def test_an_event_of_no_data_is_none(empty):
    """As some servers keep a connection alive: in one read, over reads, and at the end."""
    for cuts in (range(0), range(1, 99), [len(empty)]):
        assert datas(empty, [cut for cut in cuts if cut < len(empty)]) == []
        if empty.endswith(b"\n"):
            body = empty + b"data: a\n\n" + empty
            assert datas(body, [cut for cut in cuts if cut < len(body)]) == [("", b"a", True)]


def test_time_is_that_of_the_read_that_completed_the_data():
    chunks = [(1.0, b"data: a\n\nda"), (2.0, b"ta: b"), (3.0, b"\n\ndata: c\n\ndata: d\n\n")]
    assert [(event.time_s, event.data) for event in read_events(chunks)] == [
        (1.0, b"a"), (3.0, b"b"), (3.0, b"c"), (3.0, b"d")]


BODY = b": hi\r\nevent: e\r\ndata: {\"a\":1}\r\n\r\ndata:x\n\ndata: [DONE]\n\n"


@given(st.sets(st.integers(0, len(BODY))))
def test_cuts_between_reads_change_nothing(cuts):
    assert datas(BODY, cuts) == [("e", b'{"a":1}', True), ("", b"x", True), ("", b"[DONE]", True)]


def test_a_line_that_never_ends_is_read_once_and_not_again_with_every_read():
    """16 MB in reads of 1 KiB took minutes when each was joined to all before."""
    chunks = [(float(i), b"x" * 1024) for i in range(16 << 10)]
    begin_s = time.process_time()
    assert list(read_events([*chunks, (0.0, b"\n\ndata: a\n\n")])) == [(0.0, "", b"a", True)]
    assert time.process_time() - begin_s < 2


@pytest.mark.parametrize("cuts", [range(0), range(1, 60), [50]])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_a_line_that_is_too_long_is_a_fault_of_protocol(end, cuts, monkeypatch):
    monkeypatch.setattr(sse, "_MAX_LINE_BYTES", 60)
    fits = b"data: a\n\ndata: " + b"x" * 54 + end
    assert datas(fits, cuts)[-1][1] == b"x" * 54
    with pytest.raises(EngineProtocol, match="longer than 60 bytes"):
        datas(b"data: " + b"x" * 55 + end, cuts)
