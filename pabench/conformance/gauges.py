"""What gauges say of an engine: whether it is idle, and whether all was given back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.metered import sampled
from pabench.telemetry.vocabulary import KVSample

__all__ = ["all_given_back", "given_back", "idle", "idle_again", "idle_baseline", "sampled", "settled", "state"]


def idle(sample: KVSample) -> bool:
    """Whether nothing runs or waits."""
    return sample.running == 0 and not sample.waiting


def given_back(sample: KVSample, baseline: KVSample) -> bool:
    """Whether the engine is idle and holds no more than before."""
    return idle(sample) and (sample.kv_usage or 0.0) <= (baseline.kv_usage or 0.0) + 1e-6


def settled(engine: EngineUnderTest, baseline: KVSample, within_s: float) -> KVSample | None:
    """The gauges once the engine is idle and holds no more than before, or when the time is up.

    None where they were not renewed until then: an idle engine that they show may be that of before.
    """
    return engine.metrics_renewed(lambda now: given_back(now, baseline), within_s=within_s)


def idle_baseline(engine: EngineUnderTest) -> KVSample:
    """The gauges of the idle engine. Raises CaseFailed where it does not become idle."""
    baseline = engine.metrics_when_stable(idle, within_s=engine.settle_s)
    if not idle(baseline):
        fail("the engine is idle before the case", state(baseline))
    return baseline


def idle_again(engine: EngineUnderTest, hint: str) -> KVSample:
    """The gauges of the engine after all has ended. Raises CaseFailed where it does not become idle."""
    after = engine.metrics_renewed(idle, within_s=engine.settle_s)
    if after is None or not idle(after):
        fail("idle after all have ended", state(after), hint=hint)
    return after


@contextlib.contextmanager
def all_given_back(engine: EngineUnderTest, hint: str) -> Iterator[None]:
    """Raise CaseFailed unless, after the body, the engine is soon idle and holds no more memory than before it.

    Asks nothing of an engine without gauges of running requests.
    """
    if not engine.can("running_metrics"):
        yield
        return
    baseline = idle_baseline(engine)
    yield
    after = settled(engine, baseline, engine.settle_s)
    if after is None or not given_back(after, baseline):
        fail(f"idle again within {engine.settle_s:g} s: {state(baseline)}", state(after), hint=hint)


def state(sample: KVSample | None) -> str:
    """The gauges in words."""
    if sample is None:
        return "no metrics"
    usage = "" if sample.kv_usage is None else f", KV use {sample.kv_usage:.4f}"
    return f"{sample.running:g} running, {sample.waiting or 0:g} waiting{usage}"
