"""How late the event loop comes round: the client's own error in every arrival time."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from pabench.load.client import clock
from pabench.load.manifest import ClientHealth
from pabench.load.records import RequestRecord

_INTERVAL_S = 0.01


class LoopLag:
    """Samples, while `watch` runs, how much later than asked a short sleep ends; and the CPU time spent meanwhile."""

    def __init__(self) -> None:
        self.lags_s: list[float] = []
        self._started_s = clock()
        self._cpu_s = time.process_time()
        self._cpu_share: float | None = None

    async def watch(self) -> None:
        """Sample until cancelled."""
        self._started_s, self._cpu_s = clock(), time.process_time()
        while True:
            due = clock() + _INTERVAL_S
            await asyncio.sleep(_INTERVAL_S)
            self.lags_s.append(max(0.0, clock() - due))

    def stop(self) -> None:
        """Take the CPU share: what comes after is not measurement."""
        wall_s = clock() - self._started_s
        self._cpu_share = (time.process_time() - self._cpu_s) / wall_s if wall_s > 0 else None

    def health(self, records: list[RequestRecord], *, scrapes: int, failed_scrapes: int) -> ClientHealth:
        """Lag, lateness (sent - intended) and CPU share, for the manifest."""
        lateness = [r.sent_s - r.intended_s for r in records if r.sent_s is not None]
        lag, late = _quantiles_ms(self.lags_s), _quantiles_ms(lateness)
        return ClientHealth(
            loop_lag_p50_ms=lag[0], loop_lag_p99_ms=lag[1], loop_lag_max_ms=lag[2],
            lateness_p50_ms=late[0], lateness_p99_ms=late[1], lateness_max_ms=late[2],
            cpu_share=self._cpu_share, scrapes=scrapes, failed_scrapes=failed_scrapes,
        )


def _quantiles_ms(samples_s: list[float]) -> tuple[float, float, float] | tuple[None, None, None]:
    if not samples_s:
        return None, None, None
    p50, p99 = np.quantile(samples_s, [0.5, 0.99])
    return float(p50) * 1e3, float(p99) * 1e3, max(samples_s) * 1e3
