"""Text exposition -> `MetricFamilies`, as engines really write it.

Lines are parsed one at a time by prometheus_client, so that a name stays as the engine wrote it (the library's own
page reader adds `_total` to counters that have none) and one damaged line costs that line alone.
Known deviations, each met in an engine: names with `:` turned to `_` under OpenMetrics negotiation; `_created` gauges
beside every counter; NaN; summaries; histograms whose own name ends in `_total`; gauges that carry an `le` label.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from prometheus_client.parser import text_string_to_metric_families

from pabench.errors import EngineProtocol
from pabench.telemetry.vocabulary import MetricSample

ACCEPT = "text/plain; version=0.0.4"
"""The Accept header that keeps engines from escaping their names."""

# Engines whose metric names start with `<prefix>:`, which OpenMetrics negotiation turns into `<prefix>_`.
_COLON_PREFIXES = ("vllm", "sglang", "lmdeploy", "llamacpp", "pabench_ref")
_ESCAPED = re.compile(rf"^({'|'.join(_COLON_PREFIXES)})_(.+)$")
_NAME = re.compile(r"[^\s{]+")


def parse_exposition(page: str | bytes, names: Collection[str] | None = None) -> dict[str, list[MetricSample]]:
    """Samples of a metrics page by name, in the colon form (`vllm:num_requests_running`).

    `names`: read only these, for speed. Raises EngineProtocol when the page holds lines but not one sample.
    """
    text = page.decode("utf-8", "replace") if isinstance(page, bytes) else page
    families: dict[str, list[MetricSample]] = {}
    declared: set[str] = set()
    first_bad: str | None = None
    num_good = 0
    for raw in text.splitlines():
        line = raw.strip()
        if not line:
            continue
        if line.startswith("#"):
            _note_declaration(line, declared)
            continue
        if names is not None and not _may_be(line, names):
            num_good += 1
            continue
        sample = _parse_line(line)
        if sample is None:
            first_bad = first_bad or line
            continue
        num_good += 1
        if not _is_creation_time(sample.name, declared) and (names is None or sample.name in names):
            families.setdefault(sample.name, []).append(sample)
    if first_bad is not None and num_good == 0:
        raise EngineProtocol(
            f"the metrics page is no Prometheus text: got a line {first_bad[:80]!r}, expected 'name{{labels}} value'"
        )
    return families


def _note_declaration(line: str, declared: set[str]) -> None:
    parts = line.split(None, 3)
    if len(parts) == 4 and parts[1] == "TYPE":
        declared.add(_colon_form(parts[2].strip('"')))


def _colon_form(name: str) -> str:
    return _ESCAPED.sub(r"\1:\2", name)


def _may_be(line: str, names: Collection[str]) -> bool:
    match = _NAME.match(line)
    # A quoted name stands inside the braces; only the parser can tell.
    return match is None or _colon_form(match.group()) in names


def _is_creation_time(name: str, declared: set[str]) -> bool:
    """Whether `name` is the creation time that client libraries expose beside a counter, histogram or summary."""
    if not name.endswith("_created"):
        return False
    base = name.removesuffix("_created")
    return base in declared or f"{base}_total" in declared


def _parse_line(line: str) -> MetricSample | None:
    try:
        sample = next(iter(text_string_to_metric_families(line))).samples[0]
        return MetricSample(_colon_form(sample.name), dict(sample.labels), float(sample.value))
    except (ValueError, StopIteration, IndexError, OverflowError):
        return None
