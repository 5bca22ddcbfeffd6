"""Gauges watched until they show what is awaited: how old they may be, and what makes them move.

Engines renew their gauges once a step, or by the clock (`Dialect.cadence_s`). What is read in between may tell of a
moment long before: an engine that shows itself idle may have shown so since before it was asked anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pabench.telemetry.vocabulary import KVSample

_POLL_S = 0.05
_NUDGE_AFTER_S = 0.4  # engines that renew their gauges once a step need a step to show that they are idle


@dataclass(frozen=True, slots=True)
class Watch:
    """How gauges are looked at. `cadence_s`: between two renewals by the clock; 0 where a step renews them."""

    look: Callable[[], KVSample]
    nudge: Callable[[], None]  # makes an idle engine step
    cadence_s: float

    def until(self, ready: Callable[[KVSample], bool], within_s: float) -> KVSample:
        """Poll until `ready` holds, at most `within_s` seconds; the last sample, whether it holds or not."""
        sample, _ = self._poll(ready, within_s, renewed=True)
        return sample

    def until_renewed(self, ready: Callable[[KVSample], bool], within_s: float) -> KVSample | None:
        """As `until`, of gauges that were surely renewed since: they have changed, or a cadence has passed.

        None where `within_s` is over before.
        """
        sample, renewed = self._poll(ready, within_s, renewed=self.cadence_s == 0)
        return sample if renewed else None

    def _poll(
        self, ready: Callable[[KVSample], bool], within_s: float, *, renewed: bool
    ) -> tuple[KVSample, bool]:
        start = last_nudge = time.monotonic()
        # An engine that goes by the clock needs no step; one that counts its idle time would begin to count anew.
        nudge_after_s = max(min(_NUDGE_AFTER_S, within_s / 4), self.cadence_s)
        first = sample = self.look()
        while True:
            now = time.monotonic()
            renewed = renewed or now - start >= self.cadence_s or _shown(sample) != _shown(first)
            if (renewed and ready(sample)) or now - start > within_s:
                return sample, renewed
            if now - last_nudge > nudge_after_s:
                self.nudge()
                last_nudge = time.monotonic()
            time.sleep(_POLL_S)
            sample = self.look()


def _shown(sample: KVSample) -> tuple[float | None, ...]:
    return sample.running, sample.waiting, sample.kv_usage
