"""An engine's metrics page, and those beside it where it tells more, or the same with metrics off: read as one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson

from pabench.errors import EngineProtocol
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.vocabulary import MetricFamilies, MetricSample

_NO_METRICS = (404, 501)  # llama.cpp's is the latter
_MAX_NUMBER = 2.0**53
Get = Callable[[str], Awaitable[tuple[int, bytes]]]
"""Status and body of a GET."""


@dataclass(frozen=True, slots=True)
class ExtraPage:
    """A page that an engine may have beside its metrics.

    `use`: asked with every scrape; only where there is no metrics page; or once, since it never changes. `read` makes
    metrics of it, of names that no page of another use has; it raises ValueError or EngineProtocol for what is none.
    """

    path: str
    use: Literal["beside", "instead", "once"]
    read: Callable[[bytes], MetricFamilies]


class Paged(Protocol):
    """The part of a dialect that tells where its numbers lie."""

    metrics_path: str | None
    extra_pages: tuple[ExtraPage, ...]


class PageReader:
    """Reads what changes. A page that is not there is not asked for again, as long as another one is."""

    def __init__(self, dialect: Paged, get: Get, names: Collection[str] | None = None) -> None:
        self._dialect = dialect
        self._get = get
        self._names = names
        self._absent: set[str] = set()

    async def read(self) -> MetricFamilies | None:
        """All metrics of now; None where there is no page at all. Raises EngineProtocol for one that is none."""
        found = await self._metrics()
        for page in self._dialect.extra_pages:
            if page.use == "beside" or (page.use == "instead" and found is None):
                extra = await self._beside(page, alone=found is None)
                found = found if extra is None else {**extra, **(found or {})}
        if found is None:
            self._absent.clear()
        return found

    async def _beside(self, page: ExtraPage, *, alone: bool) -> MetricFamilies | None:
        """A page that fails costs itself, where there is another; raises EngineProtocol where it is `alone`."""
        if page.path in self._absent:
            return None
        try:
            extra = await read_extra(page, self._get)
        except EngineProtocol:
            if alone:
                raise
            return None
        if extra is None:
            self._absent.add(page.path)
        return extra

    async def _metrics(self) -> MetricFamilies | None:
        path = self._dialect.metrics_path
        if path is None or path in self._absent:
            return None
        status, body = await self._get(path)
        if status in _NO_METRICS:
            self._absent.add(path)
            return None
        if status != 200:
            raise EngineProtocol(f"GET {path}: expected 200, got {status}")
        return parse_exposition(body, self._names)


async def read_extra(page: ExtraPage, get: Get) -> MetricFamilies | None:
    """What `page` tells; None where the engine has none, or keeps it to itself."""
    status, body = await get(page.path)
    if 400 <= status < 500 or status == 501:
        return None
    if status != 200:
        raise EngineProtocol(f"GET {page.path}: expected 200, got {status}")
    try:
        return page.read(body)
    except ValueError as error:
        raise EngineProtocol(f"GET {page.path}: the answer is of no form that is known, got {body[:80]!r}") from error


def json_fields(path: str, *names: str) -> Callable[[bytes], MetricFamilies]:
    """Reads these fields of a JSON object, as metrics `PATH NAME`. Dots lead into objects inside; what is no number and
    no truth value is left out.
    """
    def read(body: bytes) -> MetricFamilies:
        answer = orjson.loads(body)
        if not isinstance(answer, dict):
            raise ValueError("no object")
        told = {f"{path} {name}": number(_inside(answer, name)) for name in names}
        return {name: [MetricSample(name, {}, value)] for name, value in told.items() if value is not None}

    return read


def number(value: Any) -> float | None:
    """A count or a truth value that an engine sent, or None where it is neither."""
    return float(value) if isinstance(value, int | float) and 0 <= value < _MAX_NUMBER else None


def _inside(answer: Any, name: str) -> Any:
    for part in name.split("."):
        answer = answer.get(part) if isinstance(answer, dict) else None
    return answer
