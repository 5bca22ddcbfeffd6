"""What HTTP can do to an answer, byte by byte: each ends in its own outcome, and none in two."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from pabench.errors import UsageError
from pabench.load import connection, line, run_loop
from pabench.load.client import LoadClient, PreparedRequest
from pabench.load.connection import Exchange
from pabench.load.line import asks_for_stamps

ASKED = PreparedRequest(0, "/v1/completions", b'{"prompt": "x"}', {"X-Request-Id": "mine"})
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"


@asynccontextmanager
async def answering(
    *writes: bytes | float, tls: ssl.SSLContext | None = None, limit: int = 1 << 16
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers each request with these bytes and pauses (seconds), then closes; URL and what it read."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b'"x"}'))
            for write in writes:
                if isinstance(write, bytes):
                    writer.write(write)
                    await writer.drain()
                else:
                    await asyncio.sleep(write)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has had enough
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, limit=limit)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"{'https' if tls else 'http'}://{'localhost' if tls else host}:{port}", heads


def ask(*writes: bytes | float, tls: ssl.SSLContext | None = None) -> Exchange:
    async def go() -> Exchange:
        async with answering(*writes, tls=tls) as (url, _), LoadClient(url, timeout_s=5.0) as client:
            return await client.send(ASKED, 0.0)

    return run_loop(go())


@pytest.fixture(params=["kernel", "loop"])
def _stamps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of line; the second is that of systems whose kernel stamps nothing."""
    if request.param == "loop":
        monkeypatch.setattr(line, "asks_for_stamps", lambda tls: False)


@pytest.mark.usefixtures("_stamps")
@pytest.mark.parametrize("writes", [
    (WHOLE,),
    (b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE),
    (CHUNKED + b"4\r\nbo", 0.01, b"dy\r\n", 0.01, b"0\r\n\r\n"),
    (CHUNKED + b"4;name=value\r\nbody\r\n0\r\nTrailer: x\r\n\r\n",),
    (b"HTTP/1.1 200 OK\r\n\r\nbo", 0.01, b"dy"),            # as long as the connection
    (b"HTTP/1.0 200 OK\r\n\r\nbody",),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 4\r\n\r\nbody",),
])
def test_every_way_to_say_an_answer_is_understood(writes: tuple[bytes | float, ...]) -> None:
    exchange = ask(*writes)
    assert (exchange.fault, exchange.status, b"".join(exchange.pieces)) == (None, 200, b"body")


@pytest.mark.usefixtures("_stamps")
@pytest.mark.parametrize(("writes", "fault", "text"), [
    ((), "reset", "before the answer"),
    ((b"HTTP/1.1 200 OK\r\nContent-Le",), "reset", "inside the answer"),
    ((CHUNKED + b"f\r\nhalf a ch",), "reset", "inside the answer"),
    ((CHUNKED + b"4\r\nbody\r\n",), "reset", "inside the answer"),
    ((b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody",), "reset", "inside the answer"),
    ((CHUNKED + b"zz\r\nbody\r\n",), "protocol", "expected an HTTP answer"),
    ((CHUNKED + b"4\r\nbodyTOO LONG\r\n0\r\n\r\n",), "protocol", "expected an HTTP answer"),
    ((b"SSH-2.0-OpenSSH_9.2\r\n",), "protocol", "expected an HTTP answer, got b'SSH-2.0"),
    ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",), "protocol", "expected"),
    ((b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbody",), "protocol", "compressed"),
    ((b"HTTP/1.1 200 OK\r\n" + b"X: yz\r\n" * 60_000,), "protocol", "the header is longer than 262144 bytes"),
    ((b"HTTP/1.1 200 OK\r\nX: " + b"y" * 400_000,), "protocol", "the header is longer than 262144 bytes"),
])
def test_every_way_to_break_one_has_its_name(writes: tuple[bytes | float, ...], fault: str, text: str) -> None:
    exchange = ask(*writes)
    assert (exchange.fault, text in str(exchange.fault_text)) == (fault, True), exchange


@pytest.mark.parametrize("status", [b"302 Found\r\nLocation: /elsewhere", b"429 Too Many Requests\r\nRetry-After: 1",
                                    b"503 Service Unavailable\r\nRetry-After: 1"])
def test_redirects_and_refusals_are_answers_and_nothing_is_asked_again(status: bytes) -> None:
    async def go() -> None:
        answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
        async with answering(answer) as (url, heads), LoadClient(url, timeout_s=5.0) as client:
            exchange = await client.send(ASKED, 0.0)
            await asyncio.sleep(0.05)
            assert (exchange.fault, exchange.status, len(heads)) == (None, int(status[:3]), 1)

    run_loop(go())


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MAX_ANSWER_BYTES", 100_000)
    exchange = ask(CHUNKED, *[b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 300)
    assert (exchange.fault, exchange.fault_text) == ("protocol", "the answer is longer than 100000 bytes")


def test_bytes_that_nobody_asked_for_end_the_kept_connection() -> None:
    """They would be taken for the next answer."""
    async def go() -> None:
        async with answering(WHOLE, 0.02, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother", 5.0) as (url, heads), \
                LoadClient(url, timeout_s=5.0) as client:
            first = await client.send(ASKED, 0.0)
            await asyncio.sleep(0.1)
            second = await client.send(ASKED, 0.0)
            assert [b"".join(one.pieces) for one in (first, second)] == [b"body"] * 2
            assert (second.reused, len(heads)) == (False, 2)

    run_loop(go())


def test_the_request_is_one_that_servers_take() -> None:
    async def go() -> bytes:
        async with answering(WHOLE) as (url, heads), LoadClient(f"{url}/a b", timeout_s=5.0, api_key="k") as client:
            await client.send(ASKED, 0.0)
            return heads[0]

    head, _, body = run_loop(go()).partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    assert first == "POST /a%20b/v1/completions HTTP/1.1"
    assert {"Content-Length: 15", "X-Request-Id: mine", "Authorization: Bearer k"} < set(fields)
    assert body == ASKED.body


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(UsageError, match="expected printable ASCII"):
        LoadClient("http://127.0.0.1:1", timeout_s=1.0, api_key="a\r\nX: y")


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context with a certificate for localhost, which this process trusts."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key", "-out",
                    tmp_path / "cert", "-days", "2", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    return context


def test_tls_is_spoken_and_certificates_are_checked(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = ask(CHUNKED + b"4\r\nbody\r\n", 0.02, b"0\r\n\r\n", tls=certificate)
    assert (exchange.fault, b"".join(exchange.pieces)) == (None, b"body")
    monkeypatch.delenv("SSL_CERT_FILE")
    exchange = ask(WHOLE, tls=certificate)
    assert (exchange.fault, "certificate verify failed" in str(exchange.fault_text)) == ("connect", True), exchange


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open none."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        taken = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_out_of_files_is_the_clients_own_fault() -> None:
    async def go() -> Exchange:
        async with answering(WHOLE) as (url, _), LoadClient(url, timeout_s=5.0) as client:
            with no_more_files():
                return await client.send(ASKED, 0.0)

    exchange = run_loop(go())
    assert (exchange.fault, "Too many open files" in str(exchange.fault_text)) == ("client", True), exchange


@pytest.mark.skipif(not asks_for_stamps(None), reason="the kernel stamps on Linux alone")
def test_a_client_that_is_late_to_read_notes_when_the_bytes_came() -> None:
    """The loop stands still for 0.3 s, in which an answer comes from another process's socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def go() -> tuple[float, float]:
            async with LoadClient(f"http://127.0.0.1:{port}", timeout_s=5.0) as client:
                asking = asyncio.create_task(client.send(ASKED, 0.0))
                await asyncio.sleep(0.05)
                taken, _ = server.accept()
                with taken:
                    taken.recv(65536)
                    written_s = time.monotonic()
                    taken.sendall(WHOLE)
                    time.sleep(0.3)  # what a client must never do
                    exchange = await asking
                return written_s, exchange.times_s[0]

        written_s, noted_s = run_loop(go())
    assert 0 <= noted_s - written_s < 0.02


def test_an_answer_ends_with_its_last_byte_and_one_that_is_given_up_when_that_is_done() -> None:
    whole = ask(CHUNKED + b"4\r\nbody\r\n", 0.05, b"0\r\n\r\n")
    assert whole.end_s is not None
    assert whole.end_s - whole.times_s[-1] > 0.04  # no token is in the last read
    broken = ask(CHUNKED + b"4\r\nbody\r\n", 0.05)
    assert broken.end_s is not None
    assert broken.end_s - broken.times_s[-1] > 0.04


@pytest.mark.parametrize("stamps", [True, False])
def test_arrivals_that_the_kernel_did_not_stamp_are_told(stamps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kernels take the option and stamp nothing."""
    if not stamps:
        monkeypatch.setattr(line, "_arrival", lambda _: None)

    async def go() -> bool:
        async with answering(WHOLE) as (url, _), LoadClient(url, timeout_s=5.0) as client:
            exchange = await client.send(ASKED, 0.0)
            assert exchange.sent_s is not None
            assert exchange.sent_s < exchange.times_s[0] < time.monotonic()
            return client.kernel_stamps

    assert run_loop(go()) is (stamps and asks_for_stamps(None))


def test_names_of_hosts_beyond_ascii_are_written_as_servers_know_them() -> None:
    assert "Host: xn--bcher-kva.example:8000\r\n" in LoadClient("http://bücher.example:8000", timeout_s=1.0)._head
    with pytest.raises(UsageError, match="no name of a host"):
        LoadClient(f"http://{'ü' * 80}.example", timeout_s=1.0)


def test_a_request_larger_than_the_sockets_room_goes_out_whole() -> None:
    """And the answer is read while the rest of it waits."""
    body = b'{"prompt": "' + b"y" * 8_000_000 + b'"x"}'
    large = PreparedRequest(0, "/v1/completions", body, {})

    async def go() -> tuple[Exchange, int]:
        async with answering(WHOLE, limit=16_000_000) as (url, heads), LoadClient(url, timeout_s=20.0) as client:
            return await client.send(large, 0.0), len(heads[0].partition(b"\r\n\r\n")[2])

    exchange, num_read = run_loop(go())
    assert (exchange.fault, num_read) == (None, len(body))


def test_the_address_that_has_worked_alone_tells_what_became_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for several addresses, of which one leads nowhere: that is no news of the engine's."""
    asked: list[tuple[str, int]] = []

    async def connect(address: line.Address, *arguments: object) -> line.Line:
        asked.append(address[1][:2])
        if address[1][0] != "127.0.0.1":
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return await genuine(address, *arguments)  # type: ignore[arg-type]

    genuine = line.connect
    monkeypatch.setattr(connection, "connect", connect)

    async def go() -> list[Exchange]:
        async with answering(WHOLE) as (url, _), LoadClient(url, timeout_s=5.0) as client:
            nowhere = (socket.AF_INET, ("127.0.0.2", client._port))
            client._addresses = [nowhere, (socket.AF_INET, ("127.0.0.1", client._port))]
            first = await client.send(ASKED, 0.0)
        async with LoadClient(url, timeout_s=5.0) as after:
            after._addresses = client._addresses
            return [first, await after.send(ASKED, 0.0)]

    first, after = run_loop(go())
    assert (first.fault, after.fault) == (None, "connect"), after.fault_text
    assert [host for host, _ in asked] == ["127.0.0.2", "127.0.0.1", "127.0.0.1"]


@pytest.mark.usefixtures("_stamps")
@pytest.mark.parametrize("stray", [b"HTTP/1.1 408 Too Late\r\nContent-Length: 5\r\n\r\nlater", b"\0\0\0 no HTTP"])
@pytest.mark.parametrize("whole", [WHOLE, CHUNKED + b"4\r\nbody\r\n0\r\n\r\n"])
def test_what_comes_behind_an_answer_is_no_part_of_it(whole: bytes, stray: bytes) -> None:
    async def go() -> list[Exchange]:
        async with answering(whole + stray, 0.2) as (url, _), LoadClient(url, timeout_s=5.0) as client:
            return [await client.send(ASKED, 0.0) for _ in range(2)]

    for exchange in run_loop(go()):
        assert (exchange.fault, exchange.status, b"".join(exchange.pieces)) == (None, 200, b"body")
        assert not exchange.reused
