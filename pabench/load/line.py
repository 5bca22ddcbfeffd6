"""A line to the engine: bytes out, and bytes in with the time of their arrival.

On Linux the arrival is the kernel's own (SO_TIMESTAMPNS): how late this process comes to read is in no figure then.
Elsewhere, and under TLS, whose bytes have arrived before they can be read, there is none, and none where a kernel takes
the option and stamps nothing: the time of the reading has to do, and the run says so.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

clock = time.monotonic
_wall_ns = time.time_ns
Take = Callable[[bytes, float | None], None]  # bytes and when they arrived, on `clock`; None: nobody knows
Lost = Callable[[Exception | None], None]    # None: the other side has said that it ends
Address = tuple[int, tuple[Any, ...]]        # family, and what `connect` takes

SO_TIMESTAMPNS = 35                          # not named by Python's socket module
_TIMESPEC = struct.Struct("@qq")
_unpack = _TIMESPEC.unpack
_STAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
_STAMP_KIND = (socket.SOL_SOCKET, SO_TIMESTAMPNS)
_READ_BYTES = 1 << 15


class Line(Protocol):
    """An open connection."""

    @property
    def is_open(self) -> bool:
        """Whether it can be written to, as far as is known."""
        ...

    def write(self, data: bytes) -> None:
        """Send all of `data`; what cannot leave at once is kept."""
        ...

    def abort(self) -> None:
        """Close it without a farewell; nothing is told of that."""
        ...


def asks_for_stamps(tls: ssl.SSLContext | None) -> bool:
    """Whether a line asks the kernel for the time of its arrivals."""
    return tls is None and sys.platform == "linux"


async def connect(address: Address, tls: ssl.SSLContext | None, host: str, take: Take, lost: Lost) -> Line:
    """A line to `address` that calls `take` and, once, `lost`. `host`: the name that its certificate must bear.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    family, where = address
    if asks_for_stamps(tls):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            await loop.sock_connect(sock, where)
        except BaseException:
            sock.close()
            raise
        return StampedLine(loop, sock, take, lost)
    _, line = await loop.create_connection(lambda: _ReadLine(take, lost), where[0], where[1], ssl=tls,
                                           server_hostname=host if tls is not None else None)
    return line


def _nobody(*_: object) -> None:
    """Who is told of a closed line: the one who was told before holds the line, and would never be given up."""


class StampedLine:
    """A plain socket whose bytes bear the kernel's time of arrival."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, take: Take, lost: Lost) -> None:
        self._loop, self._socket, self._take, self._lost = loop, sock, take, lost
        self._unsent = b""
        self._waiting = False  # for room to send more
        self.is_open = True
        loop.add_reader(sock.fileno(), self._read)

    def write(self, data: bytes) -> None:
        """Send all of `data`; what cannot leave at once is kept."""
        if self._unsent:
            self._unsent += data
            return
        self._unsent = data
        self._flush()

    def abort(self) -> None:
        """Close it without a farewell; nothing is told of that."""
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._socket.fileno())
            self._wait(False)
            self._socket.close()
            self._take = self._lost = _nobody

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._loop.call_soon(self._end, error)
            return
        self._unsent = self._unsent[sent:]
        self._wait(bool(self._unsent))

    def _wait(self, for_room: bool) -> None:
        if for_room and not self._waiting:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif self._waiting and not for_room:
            self._loop.remove_writer(self._socket.fileno())
        self._waiting = for_room

    def _read(self) -> None:
        try:
            data, stamps, _, _ = self._socket.recvmsg(_READ_BYTES, _STAMP_SPACE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(None)
            return
        self._take(data, _arrival(stamps))

    def _end(self, error: Exception | None) -> None:
        if self.is_open:
            lost = self._lost
            self.abort()
            lost(error)


def _arrival(stamps: list[tuple[int, int, bytes]]) -> float | None:
    """When the last of the bytes came. The kernel tells that on the wall clock: its distance from now is taken."""
    for level, kind, value in stamps:
        if (level, kind) == _STAMP_KIND:
            seconds, nanoseconds = _unpack(value)
            since_ns: int = _wall_ns() - seconds * 1_000_000_000 - nanoseconds
            return clock() - since_ns / 1e9 if since_ns > 0 else clock()
    return None


class _ReadLine(asyncio.Protocol):
    """asyncio's transport, of whose bytes nobody knows when they came."""

    def __init__(self, take: Take, lost: Lost) -> None:
        self._take, self._lost = take, lost
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        assert self._transport is not None, "it is connected"
        self._transport.write(data)

    def abort(self) -> None:
        self._take = self._lost = _nobody
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._take(data, None)

    def connection_lost(self, error: Exception | None) -> None:
        lost = self._lost
        self._transport, self._take, self._lost = None, _nobody, _nobody
        lost(error)
