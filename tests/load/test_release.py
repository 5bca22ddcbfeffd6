"""A run collects no garbage, so what has ended must go by itself: nothing that it holds may hold it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from pabench.load import line, run_loop
from pabench.load.client import LoadClient
from pabench.load.connection import Connection, Exchange
from tests.load.test_wire import ASKED, CHUNKED, WHOLE, answering

ENDS = {
    "kept": (WHOLE, 5.0),
    "closed behind the answer": (WHOLE,),
    "as long as the connection": (b"HTTP/1.1 200 OK\r\n\r\nbody",),
    "closed inside the answer": (CHUNKED + b"f\r\nhalf",),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n",),
    "no answer in time": (5.0,),
}


@pytest.fixture
def _no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Connection]]:
    """All that are made."""
    made: list[weakref.ref[Connection]] = []
    genuine = Connection.connect

    async def noted(self: Connection, *arguments: object) -> None:
        made.append(weakref.ref(self))
        await genuine(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "connect", noted)
    return made


@pytest.mark.usefixtures("_no_collections")
@pytest.mark.parametrize("stamps", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_a_connection_that_has_ended_is_given_up(
    end: str, stamps: bool, connections: list[weakref.ref[Connection]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stamps:
        monkeypatch.setattr(line, "asks_for_stamps", lambda tls: False)

    async def go() -> list[Exchange]:
        async with answering(*ENDS[end]) as (url, _), LoadClient(url, timeout_s=0.3) as client:
            exchanges = [await client.send(ASKED, 0.0) for _ in range(3)]
        await asyncio.sleep(0.02)
        return exchanges

    assert len(run_loop(go())) == 3
    assert connections
    assert [one for one in connections if one() is not None] == []


@pytest.mark.usefixtures("_no_collections")
def test_a_refused_connection_leaves_nothing(connections: list[weakref.ref[Connection]]) -> None:
    async def go() -> int:
        async with LoadClient("http://127.0.0.1:1", timeout_s=1.0) as client:
            for _ in range(20):
                assert (await client.send(ASKED, 0.0)).fault == "connect"
        return sum(type(one) is ConnectionRefusedError for one in gc.get_objects())

    assert run_loop(go()) <= 1  # the last
    assert [one for one in connections if one() is not None] == []
