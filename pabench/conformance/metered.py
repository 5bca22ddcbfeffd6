"""The engine's metrics, as a test looks at them: now, and when they have come to rest."""

from __future__ import annotations

import time
from collections.abc import Callable

from pabench.conformance.described import DescribedEngine
from pabench.conformance.exchange import Geometry
from pabench.conformance.session import EngineSession, plain_prompt
from pabench.conformance.targets import unsupported
from pabench.conformance.watching import Watch
from pabench.conformance.wire import Wire
from pabench.engines.base import GenerationRequest
from pabench.telemetry.vocabulary import KVSample, MetricFamilies

_REPLICA_LABELS = ("engine", "dp_rank")  # vLLM's and SGLang's, of replicas behind one URL


class MeteredEngine(DescribedEngine):
    """What `engine` shows of itself while it works."""

    def __init__(self, session: EngineSession, geometry: Geometry) -> None:
        super().__init__(session, geometry)
        self._wire = Wire(session)

    def metrics(self) -> KVSample | None:
        """The metrics now, in the one vocabulary; None where the engine has none."""
        families = self._families()
        return None if families is None else self._session.client.dialect.kv_sample(families, time.monotonic())

    def _families(self) -> MetricFamilies | None:
        return self._wire.call(self._session.client.metrics(), [])

    @property
    def guesses(self) -> bool:
        """Whether the engine speculates: drafts were seen, or are counted since it started."""
        sample = self.metrics()
        return self.can("speculation") or (sample is not None and (sample.drafted or 0) > 0)

    @property
    def num_pools(self) -> int:
        """Pools of blocks, any of which may serve a request: one for each replica that the metrics name."""
        samples = [sample for family in (self._families() or {}).values() for sample in family]
        return max(1, *(len({sample.labels[label] for sample in samples if label in sample.labels})
                        for label in _REPLICA_LABELS))

    @property
    def reuses_partial_blocks(self) -> bool:
        """Whether the engine says that a part of a block may be a hit."""
        told = self._session.client.dialect.partial_reuse_label
        if told is None:
            return False
        name, label = told
        return any(sample.labels.get(label) == "True" for sample in (self._families() or {}).get(name, ()))

    def metrics_when_stable(self, ready: Callable[[KVSample], bool], *, within_s: float) -> KVSample:
        """Poll until `ready` holds, at most `within_s` seconds; the last sample, whether it holds or not.

        It may be as old as the engine's gauges are at most: `cadence_s`. Waiting for them is not taken from the case's
        time.
        """
        start = time.monotonic()
        sample = self._watch.until(ready, within_s)
        self._wire.prolong(min(time.monotonic() - start, self.cadence_s))
        return sample

    def metrics_renewed(self, ready: Callable[[KVSample], bool], *, within_s: float) -> KVSample | None:
        """As `metrics_when_stable`, but no sample that may tell of a moment before this call.

        None where the gauges were not renewed within `within_s`. Waiting for them is not taken from the case's time.
        """
        start = time.monotonic()
        sample = self._watch.until_renewed(ready, within_s)
        self._wire.prolong(min(time.monotonic() - start, self.cadence_s))
        return sample

    @property
    def _watch(self) -> Watch:
        return Watch(lambda: sampled(self), self._nudge, self.cadence_s)

    def _nudge(self) -> None:
        request = GenerationRequest(plain_prompt(self.facts, 4), max_tokens=1, stream=False)
        self._wire.call(self._session.client.generate(request), [])


def sampled(engine: MeteredEngine) -> KVSample:
    """The gauges now. Skips the test, as UNSUPPORTED, where there are none."""
    sample = engine.metrics()
    if sample is None:
        unsupported("the engine shows no metrics")
    return sample
