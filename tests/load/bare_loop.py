"""The least that a client in Python can do for each token as it comes: an epoll, a `recvmsg` with the kernel's time of
arrival, and the bytes kept. No event loop, no HTTP, no request but the first. A row of the peers' table.

    python -m tests.load.bare_loop URL --streams 256 --tokens 6000 --out FILE
"""

from __future__ import annotations

import argparse
import gc
import json
import select
import socket
import struct
from pathlib import Path
from time import time_ns
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from pabench.load.line import SO_TIMESTAMPNS

_STAMP = struct.Struct("@qq")
_SPACE = socket.CMSG_SPACE(_STAMP.size)
_READ_BYTES = 1 << 15
_END = b"\r\n0\r\n\r\n"
_SILENT_S = 60.0


def read_streams(url: str, streams: int, tokens: int) -> dict[str, float]:
    """Ask for `streams` answers at once; medians and p99 of their arrivals, milliseconds."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    body = json.dumps({"model": "stub", "prompt": "hello", "max_tokens": tokens, "stream": True}).encode()
    asked = b"POST /v1/completions HTTP/1.1\r\nHost: bare\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    open_ones = [socket.create_connection((host, port)) for _ in range(streams)]
    poll = select.epoll()
    kept: dict[int, tuple[Any, list[bytes], list[bytes]]] = {}
    for one in open_ones:
        one.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        poll.register(one.fileno(), select.EPOLLIN)
        kept[one.fileno()] = one.recvmsg, [], []
    sent_ns = {}
    for one in open_ones:
        sent_ns[one.fileno()] = time_ns()
        one.sendall(asked)
    gc.disable()
    _read_all(poll, kept)
    arrived_ms = [(_stamps_ns(stamps) - sent_ns[file]) / 1e6 for file, (_, _, stamps) in kept.items()]
    gaps_ms = np.concatenate([np.diff(one) for one in arrived_ms])
    return {"ttft_p50_ms": float(np.median([one[0] for one in arrived_ms])),
            "itl_p50_ms": float(np.median(gaps_ms)), "itl_p99_ms": float(np.quantile(gaps_ms, 0.99))}


def _read_all(poll: select.epoll, kept: dict[int, tuple[Any, list[bytes], list[bytes]]]) -> None:
    """Read until all have ended. Raises TimeoutError where nothing comes, ValueError where one breaks."""
    left = len(kept)
    while left:
        ready = poll.poll(_SILENT_S)
        if not ready:
            raise TimeoutError(f"{left} answers have not ended, and nothing has come for {_SILENT_S:g} s")
        for file, _ in ready:
            receive, pieces, stamps = kept[file]
            data, ((_, _, stamp),), _, _ = receive(_READ_BYTES, _SPACE)  # ValueError of one that is closed: no stamp
            pieces.append(data)
            stamps.append(stamp)
            if data.endswith(_END):
                poll.unregister(file)
                left -= 1


def _stamps_ns(stamps: list[bytes]) -> NDArray[np.int64]:
    """When events came: the first read is the answer's head."""
    seconds = np.frombuffer(b"".join(stamps[1:]), dtype=np.int64).reshape(-1, 2)
    return seconds[:, 0] * 1_000_000_000 + seconds[:, 1]


def main() -> None:
    """Parse, read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.write_text(json.dumps(read_streams(given.url, given.streams, given.tokens)) + "\n")


if __name__ == "__main__":
    main()
