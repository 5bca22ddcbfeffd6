"""An engine that the run itself starts: started again when it has died, and asked again what it died of."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pabench.conformance.exchange import Exchange, RawPost
from pabench.conformance.session import EngineSession
from pabench.conformance.wire import Wire
from pabench.engines import EngineProcess
from pabench.engines.address import MAX_STARTS
from pabench.errors import EngineDied, EngineError

_MAX_SUSPECTS = 16  # requests that are asked again, each alone

News = Callable[[str], None]


class LaunchedEngine:
    """The process of the engine, and those that came after it: one runs at a time, each with a log of its own.

    `command` has {port} where its port belongs, and so may `url` have; {start} in `command` is 1 at the first start.
    """

    def __init__(self, command: Sequence[str], url: str, folder: Path, ready_timeout_s: float, news: News) -> None:
        self._folder, self._ready_timeout_s, self._news = folder, ready_timeout_s, news
        self.starts, self.starting_s = 0, 0.0  # how often it was started, and how long it took to serve, all together
        self._process = EngineProcess(command, url=url, log=self._log(1), ready_timeout_s=ready_timeout_s)
        self._command, self.url = self._process.command, self._process.url

    def start(self) -> None:
        """Start it, once more after it has died. Raises EngineDied, EngineTimeout and UsageError when it cannot be."""
        self._process.stop()
        if self.starts == MAX_STARTS:
            raise EngineDied(f"it was started {MAX_STARTS} times, and is given up")
        self.starts += 1
        log = self._log(self.starts)
        self._news(f"starting the engine{'' if self.starts == 1 else ' again'}, its output goes to {log}")
        command = [word.replace("{start}", str(self.starts)) for word in self._command]
        self._process = EngineProcess(command, url=self.url, log=log, ready_timeout_s=self._ready_timeout_s)
        began = time.monotonic()
        try:
            self._process.__enter__()
        finally:
            self.starting_s += time.monotonic() - began

    def end(self) -> str:
        """How the process ended, and what it wrote last."""
        code = self._process.returncode
        if code is None:
            how = "its process still runs"
        elif code < 0:
            how = f"its process was ended by {signal.Signals(-code).name}"
        else:
            how = f"its process ended with status {code}"
        return f"{how}; last words: {self._process.last_words()}"

    def stop(self) -> None:
        """End the process and its children."""
        self._process.stop()

    def _log(self, number: int) -> Path:
        return self._folder / ("engine.log" if number == 1 else f"engine-{number}.log")


def find_killer(session: EngineSession, exchanges: Sequence[Exchange]) -> tuple[Exchange | None, str]:
    """Which of the requests that were under way ends a new engine, alone: it, and what was found, in words.

    The engine has just been started again, and is gone where one is found. The last that was sent is asked first: most
    often it is the one.
    """
    under_way = [exchange for exchange in exchanges if exchange.under_way]
    suspects = list(reversed(under_way or list(exchanges)[-1:]))[:_MAX_SUSPECTS]
    for suspect in suspects:
        if not _survives(session, suspect):
            return suspect, f"{suspect.described}, alone, ends a new process too"
    if not suspects:
        return None, "no request was under way"
    some = "all" if len(under_way) <= len(suspects) else f"the last {len(suspects)} of {len(under_way)}"
    return None, f"{some} requests that were under way leave a new process alive, one at a time"


def _survives(session: EngineSession, suspect: Exchange) -> bool:
    wire = Wire(session)
    again = Exchange(suspect.request, suspect.name)
    try:
        if isinstance(again.request, RawPost):
            wire.post(again)
        else:
            wire.send(again)
    except EngineError:
        pass  # whether that was its end is asked next
    return session.still_lives()
