"""What came back of one request of the `EngineClient`, and the words for what went wrong."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from pabench.engines.cleaning import clean, masked
from pabench.errors import EngineProtocol


def reason(error: Exception) -> str:
    """Why a connection failed, in the system's few words where it has them."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ssl.SSLError):  # its number is none of the system's
        return clean(str(cause))
    number = cause.errno if isinstance(cause, OSError) and (cause.errno or 0) > 0 else None
    return os.strerror(number).lower() if number is not None else clean(str(cause) or type(cause).__name__)


@dataclass(slots=True)
class Exchange:
    """What came back so far: (arrival on the monotonic clock in seconds, bytes) as read."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    broken: bool = False  # the connection broke inside the answer

    @property
    def body(self) -> bytes:
        """All bytes so far."""
        return b"".join(piece for _, piece in self.chunks)

    def leave_out(self, api_key: str | None) -> None:
        """Mask the key, which may lie across pieces; they stay as long as they were."""
        if api_key is None:
            return
        body, at = masked(self.body, self.status, api_key), 0
        for number, (time_s, piece) in enumerate(self.chunks):
            self.chunks[number] = (time_s, body[at:at + len(piece)])
            at += len(piece)


def refuse_redirect(where: str, exchange: Exchange) -> None:
    """Raise EngineProtocol where a POST is sent elsewhere: the load client would take that for its answer."""
    target = exchange.headers.get("Location")
    if 300 <= exchange.status < 400 and target is not None:
        raise EngineProtocol(f"{where}: it redirects to {clean(target)!r} (status {exchange.status}): "
                             "give the URL of the engine itself")
