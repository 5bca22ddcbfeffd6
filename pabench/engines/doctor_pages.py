"""What `doctor` finds on an engine's metrics pages. None is needed: one that fails costs itself, with a note."""

from __future__ import annotations

from dataclasses import asdict

from pabench.engines.base import Dialect
from pabench.engines.cleaning import clean
from pabench.engines.client import EngineClient
from pabench.errors import EngineProtocol, EngineTimeout
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.pages import read_extra
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

METRICS_PATH = "/metrics"  # of nearly all


async def metrics_page(client: EngineClient, notes: list[str], path: str = METRICS_PATH) -> MetricFamilies:
    """All samples of the metrics page; empty, with a note, where there is no such page."""
    try:
        status, body = await client.page(path)
        if status == 200:
            return parse_exposition(body)
        notes.append(f"no metrics: {path} answers with status {status}")
    except (EngineProtocol, EngineTimeout) as error:
        notes.append(f"no metrics: {clean(str(error))}")
    return {}


async def with_extra_pages(client: EngineClient, metrics: MetricFamilies, notes: list[str]) -> MetricFamilies:
    """`metrics`, and what the dialect's other pages tell; with a note for each that tells nothing."""
    for page in client.dialect.extra_pages:
        if page.use == "instead" and metrics:
            continue
        try:
            extra = await read_extra(page, client.page)
            if extra is None:
                notes.append(f"nothing of the KV cache from {page.path}: it is not there")
            metrics = {**(extra or {}), **metrics}
        except (EngineProtocol, EngineTimeout) as error:
            notes.append(f"nothing of the KV cache from {page.path}: {clean(str(error))}")
    return metrics


async def after_work(client: EngineClient, metrics: MetricFamilies) -> MetricFamilies:
    """`metrics`, read once more if geometry or load were not in them: engines tell some only once a request has ended,
    or one has been scheduled.
    """
    if client.dialect.kv_facts(metrics) != KVFacts() and client.dialect.kv_sample(metrics, 0.0).running is not None:
        return metrics
    try:
        return {**metrics, **(await client.metrics() or {})}
    except (EngineProtocol, EngineTimeout):
        return metrics  # it was told why not, or will be with the first scrape


def metrics_found(dialect: Dialect, metrics: MetricFamilies) -> tuple[str, ...]:
    """Each metric that the dialect reads and the page holds, with what it tells, be it only with another's help."""
    lines, told = [], _fields(dialect, metrics)
    for name in sorted(dialect.metric_names & metrics.keys()):
        alone = _fields(dialect, {name: metrics[name]})
        without = _fields(dialect, {other: samples for other, samples in metrics.items() if other != name})
        fields = [field for field in told if field in alone or field not in without]
        lines.append(f"{', '.join(fields) or 'without a value'}: {name}")
    return tuple(lines)


def _fields(dialect: Dialect, metrics: MetricFamilies) -> list[str]:
    return _filled(dialect.kv_sample(metrics, 0.0), KVSample(0.0)) + _filled(dialect.kv_facts(metrics), KVFacts())


def _filled(found: KVSample | KVFacts, empty: KVSample | KVFacts) -> list[str]:
    blank = asdict(empty)
    return [name for name, value in asdict(found).items() if value != blank[name]]
