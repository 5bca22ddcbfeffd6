"""The stub's timing alone, fast: 100 000 stamped chunks a second from one core.

A bare protocol on uvloop; every chunk is laid out beforehand but for its stamp. It says one fixed word, in streams
only, and has none of the other stub's faults. It spins while a chunk is due within a millisecond: loop timers count
whole ones. What it was late by itself is told at `/stats`, so that nobody takes its error for the client's, and when
requests came at `/arrivals`: a list of nanoseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import signal
import time
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import httptools
import numpy as np
import orjson
import uvloop

from pabench.errors import UsageError
from pabench.stub.options import StubOptions

FAST_OPTIONS = ("host", "port", "model", "ttft_ms", "itl_ms", "tokens_per_chunk", "max_model_len", "no_stamps")
_SPIN_NS = 1_000_000
_CHUNKED = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n")
_STAMP_BYTES = 19  # nanoseconds of 300 years; padded with spaces, which JSON allows before a number
_TAIL = b"}\n\n\r\n"


@dataclass(slots=True)
class _Stream:
    """One answer being said: `said` of `chunks` so far, the next at `due_ns`. A head is what a chunk holds, or, in a
    stream that is `stamped`, what of it comes before the stamp.
    """

    transport: asyncio.Transport
    head: bytes
    last_head: bytes
    end: bytes
    chunks: int
    stamped: bool
    due_ns: int
    said: int = 0


class FastStub:
    """All streams, in the order in which they are due."""

    def __init__(self, options: StubOptions) -> None:
        self.options = options
        self.late_ns: array[int] = array("q")
        self.arrived_ns: array[int] = array("q")
        self._due: list[tuple[int, int, _Stream]] = []
        self._count = 0
        self._waking = False

    def add(self, stream: _Stream) -> None:
        """Say `stream` from now on."""
        self._count += 1
        heapq.heappush(self._due, (stream.due_ns, self._count, stream))
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._pump)

    def stats(self) -> dict[str, float]:
        """Chunks written and how late, in milliseconds."""
        late = np.asarray(self.late_ns, dtype=np.float64) / 1e6
        p50, p99, most = (np.quantile(late, [0.5, 0.99, 1.0]) if len(late) else np.zeros(3)).tolist()
        return {"chunks": len(late), "late_p50_ms": p50, "late_p99_ms": p99, "late_max_ms": most}

    def _pump(self) -> None:
        due, gap_ns = self._due, int(self.options.itl_ms * self.options.tokens_per_chunk * 1e6)
        until_ns = time.monotonic_ns() + _SPIN_NS  # then the loop reads what has come
        while due and (now_ns := time.monotonic_ns()) < until_ns and due[0][0] <= now_ns:
            due_ns, number, stream = due[0]
            if stream.transport.is_closing():
                heapq.heappop(due)
                continue
            self.late_ns.append(now_ns - due_ns)
            if self._say(stream, now_ns):
                heapq.heapreplace(due, (due_ns + gap_ns, number, stream))
            else:
                heapq.heappop(due)
        loop = asyncio.get_running_loop()
        if not due:
            self._waking = False
        elif (wait_ns := due[0][0] - time.monotonic_ns()) > 2 * _SPIN_NS:
            loop.call_later((wait_ns - _SPIN_NS) / 1e9, self._pump)
        else:
            loop.call_soon(self._pump)

    @staticmethod
    def _say(stream: _Stream, now_ns: int) -> bool:
        """Write one chunk; whether there are more."""
        stream.said += 1
        more = stream.said < stream.chunks
        head, end = (stream.head, b"") if more else (stream.last_head, stream.end)
        if stream.stamped:
            stream.transport.write(b"%b%*d%b%b" % (head, _STAMP_BYTES, now_ns, _TAIL, end))
        else:
            stream.transport.write(head + end)
        return more


class _Line(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, stub: FastStub) -> None:
        self._stub = stub
        self._parser = httptools.HttpRequestParser(self)
        self._url = self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.abort()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path, body = self._url.partition(b"?")[0].decode("latin-1"), self._body
        self._url = self._body = b""
        model = self._stub.options.model
        if path.endswith("/completions"):
            self._generate(body, chat="chat" in path)
        elif path == "/v1/models":
            self._tell({"object": "list", "data": [{
                "id": model, "object": "model", "owned_by": "pabench-stub",
                "max_model_len": self._stub.options.max_model_len}]})
        elif path == "/stats":
            self._tell(self._stub.stats())
        elif path == "/arrivals":
            self._tell(self._stub.arrived_ns.tolist())
        else:
            self._tell({}, b"200 OK" if path == "/health" else b"404 Not Found")

    def _generate(self, body: bytes, *, chat: bool) -> None:
        now_ns = time.monotonic_ns()
        try:
            asked = orjson.loads(body)
            tokens = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)
            streams = bool(asked.get("stream"))
        except (ValueError, TypeError, AttributeError):
            tokens, streams = 0, False
        if not streams or tokens < 1:
            self._tell({"error": {"message": "the fast stub answers streams of 1 token and more"}}, b"400 Bad Request")
            return
        self._transport.write(_CHUNKED)
        self._stub.arrived_ns.append(now_ns)
        due_ns = now_ns + int(self._stub.options.ttft_ms * 1e6)
        options = self._stub.options
        layout = _layout(options.model, tokens, options.tokens_per_chunk, chat, not options.no_stamps)
        self._stub.add(_Stream(self._transport, *layout, due_ns))

    def _tell(self, content: object, status: bytes = b"200 OK") -> None:
        body = orjson.dumps(content)
        self._transport.write(b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                              % (status, len(body), body))


@lru_cache(maxsize=256)
def _layout(model: str, tokens: int, size: int, chat: bool, stamped: bool) -> tuple[bytes, bytes, bytes, int, bool]:
    """Of an answer in chunks of `size` tokens, what a `_Stream` holds from its head on."""
    frame: dict[str, object] = {"id": "fast", "object": "chat.completion.chunk" if chat else "text_completion",
                                "created": 0, "model": model}
    chunks = -(-tokens // size)

    def head(words: int, finish: str | None) -> bytes:
        text = " word" * words
        said = {"delta": {"content": text}} if chat else {"text": text}
        choice = {"index": 0, "logprobs": None, "finish_reason": finish, **said}
        event = b"data: " + orjson.dumps(frame | {"choices": [choice]})
        if not stamped:
            return b"%x\r\n%b\n\n\r\n" % (len(event) + 2, event)
        event = event[:-1] + b',"pabench_sent_ns":'
        return b"%x\r\n%b" % (len(event) + _STAMP_BYTES + len(_TAIL) - 2, event)

    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    event = b"data: " + orjson.dumps(frame | {"choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n"
    end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
    return head(size, None), head(tokens - (chunks - 1) * size, "length"), end, chunks, stamped


def serve_fast(options: StubOptions) -> None:
    """Serve until interrupted or terminated. Raises UsageError when the address cannot be had."""
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options))


async def _serve(options: StubOptions) -> None:
    stub, stopped, loop = FastStub(options), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        server = await loop.create_server(lambda: _Line(stub), options.host, options.port, backlog=4096)
    except OSError as error:
        raise UsageError(f"cannot listen at {options.host}:{options.port}: {error.strerror}. Take another port, 0 for "
                         "any free one") from error
    host, port = server.sockets[0].getsockname()[:2]
    print(f"fast stub engine at http://{host}:{port}: TTFT {options.ttft_ms:g} ms, ITL {options.itl_ms:g} ms",
          flush=True)
    async with server:
        await stopped.wait()
