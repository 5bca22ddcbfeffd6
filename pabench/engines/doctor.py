"""`pabench doctor`: what engine is there, what it tells of itself, and what it can do when tried."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pabench.engines import dialects
from pabench.engines.answer_fields import MAX_INT
from pabench.engines.answer_json import error_text, load_json
from pabench.engines.base import Dialect, EngineFacts
from pabench.engines.cleaning import clean
from pabench.engines.client import MODELS_PATH, NO_ROUTE, EngineClient
from pabench.engines.doctor_pages import METRICS_PATH, after_work, metrics_found, metrics_page, with_extra_pages
from pabench.engines.openai import model_entries, owners
from pabench.engines.trials import Trials
from pabench.engines.triton import triton_models
from pabench.engines.which_probe import given_probe, try_pictures, which_probe
from pabench.errors import EngineProtocol, EngineTimeout, UsageError
from pabench.probe import ProbeSpec
from pabench.telemetry.vocabulary import KVFacts, KVSample

_MAX_NAME_CHARS = 1000
_PINNED = re.compile(r"Server is pinned to '(.+)'; requested")  # the words of transformers serve


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found. `probe` is None where the engine does not serve the KV probe; texts are safe to print."""

    facts: EngineFacts
    probe: ProbeSpec | None
    metrics_found: tuple[str, ...]   # "kv_usage: vllm:kv_cache_usage_perc"
    notes: tuple[str, ...]
    cadence_s: float = 0.0           # how late the metrics of an engine at rest may be
    not_applicable: tuple[str, ...] = ()  # quantities that an engine of this kind cannot have

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        facts = asdict(self.facts) | {"capabilities": sorted(self.facts.capabilities)}
        if self.facts.kv is not None:
            facts["kv"]["capacity_tokens"] = self.facts.kv.capacity_tokens
        return {
            "facts": facts,
            "probe": None if self.probe is None else self.probe.preset,
            "metrics_found": list(self.metrics_found),
            "notes": list(self.notes),
            "cadence_s": self.cadence_s,
            "not_applicable": list(self.not_applicable),
        }


async def examine(
    url: str,
    *,
    dialect: str | None = None,
    probe: str | Path | ProbeSpec | None = None,
    model: str | None = None,
    timeout_s: float = 10.0,
    api_key: str | None = None,
    key_name: str | None = None,
) -> Examination:
    """Examine the engine at `url`: a few small requests, each bounded by `timeout_s` seconds.

    `dialect` and `model` are found out unless given. `probe` says which KV probe is served: a preset's name, or a
    folder with a probe.json. `key_name`: the variable that holds the key, in errors. Raises EngineError with one line
    when there is no engine to examine.
    """
    if not 0 < timeout_s < math.inf:
        raise UsageError(f"the time to wait for an answer is {timeout_s:g} s, expected more than 0")
    given = given_probe(probe)
    spoken = dialects.dialect(dialect or "openai")
    async with EngineClient(url, spoken, model or "", timeout_s=timeout_s, api_key=api_key) as client:
        trials = Trials(client)
        refused = f"the key in {key_name}" if key_name else "the key that it was given"
        models, headers = await _models(client, model, refused if api_key else None)
        without: list[str] = []
        # Reading this page of trtllm-serve takes from it what somebody else may collect.
        common = "tensorrt_llm" not in owners(models) and (dialect is None or spoken.metrics_path == METRICS_PATH)
        metrics = await metrics_page(client, without) if common else {}
        if dialect is None:
            client.dialect = await _own(client, dialects.recognise(models, metrics, headers), trials.notes)
        if client.dialect.metrics_path not in (None, METRICS_PATH):
            metrics = await metrics_page(client, trials.notes, client.dialect.metrics_path)
        else:
            trials.notes += without
        metrics = await with_extra_pages(client, metrics, trials.notes)
        entry = _entry(models, model, trials.notes)
        trials.max_context_tokens = _max_context(entry)
        client.model = model or str(entry.get("id") or "") or await _pinned_model(client)
        await trials.run()
        metrics = await after_work(client, metrics)
        _require_model(models, model, trials)
        kv = client.dialect.kv_facts(metrics)
        facts = EngineFacts(
            dialect=client.dialect.name,
            model=clean(client.model, _MAX_NAME_CHARS),
            max_context_tokens=_max_context(entry),
            model_root=_root(entry, client.model),
            version=await _version(client),
            kv=None if kv == KVFacts() else kv,
        )
        told = _told(facts, client.dialect.kv_sample(metrics, 0.0))
        if trials.capabilities and kv.prefix_caching is not False:
            told |= await _prefix_cache(trials, told)
        spec = given or await which_probe(facts.model_root, trials)
        if spec is not None and spec.window is not None:
            told.add("mixed_windows" if spec.full_layers else "window")
        if spec is not None and spec.picture_side and "chat" in trials.capabilities:
            await try_pictures(trials, spec)
        facts = replace(facts, capabilities=frozenset(trials.capabilities | told))
    return Examination(facts, spec, metrics_found(client.dialect, metrics), tuple(trials.notes),
                       client.dialect.late_s(metrics), tuple(sorted(client.dialect.not_applicable)))


async def _own(client: EngineClient, recognised: Dialect, notes: list[str]) -> Dialect:
    """`recognised`, or plain OpenAI, with a note, where the engine's own description (`/openapi.json`) lacks the route
    that the dialect has alone.
    """
    if recognised.own_route is None:
        return recognised
    _, _, body = await client.get("/openapi.json")
    try:
        described = load_json(body)
    except ValueError:
        described = None
    paths = described.get("paths") if isinstance(described, Mapping) else None
    if isinstance(paths, Mapping) and recognised.own_route in paths:
        return recognised
    notes.append(f"it answers like {recognised.name}, but does not tell of a route {recognised.own_route}: taken for "
                 f"plain OpenAI (--dialect {recognised.name} if it is one)")
    return dialects.dialect("openai")


async def _prefix_cache(trials: Trials, told: set[str]) -> set[str]:
    """"prefix_cache" where hits are seen; with a note where the engine says that it is on and none is."""
    hits = await trials.prefix_cache_hits()
    if hits is False and "prefix_cache" in told:
        trials.notes.append("prefix caching: the engine says that it is on, a prompt sent twice was no hit")
    return {"prefix_cache"} if hits else set()


async def _models(
    client: EngineClient, wanted: str | None, key: str | None
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The answer of `/v1/models`, or Triton's list as such, and headers. Raises EngineProtocol where it is no engine's.

    `wanted`: the model that the caller names. `key`: the key that is sent, in words.
    """
    status, headers, body = await client.get(MODELS_PATH)
    if status in NO_ROUTE and (models := await triton_models(client, wanted)) is not None:
        return models, headers
    try:
        models = load_json(body)
    except ValueError:
        models = None
    if status in (401, 403):
        raise EngineProtocol(f"{client.url} refuses {key} (status {status}): is it this engine's?" if key else
                             f"{client.url} asks for a key (status {status}): name the variable that holds it with "
                             "--api-key-env")
    if status != 200:
        said = clean(error_text(models) or "", 200)
        raise EngineProtocol(
            f"{client.url}/v1/models answers with status {status}{f' ({said})' if said else ''}: expected an "
            "OpenAI-compatible engine. Is the port the engine's, and the URL without a path?"
        )
    if not isinstance(models, Mapping):
        raise EngineProtocol(f"{client.url}/v1/models answers with no JSON object, got {body[:60]!r}: is it an engine?")
    return models, headers


def _require_model(models: Mapping[str, Any], wanted: str | None, trials: Trials) -> None:
    """Raise UsageError where no request was answered for `wanted`, which the engine does not name either.

    One that is answered may be an adapter, or of an engine that takes any name.
    """
    entries = model_entries(models)
    if wanted is not None and not trials.capabilities and entries and wanted not in [one.get("id") for one in entries]:
        raise UsageError(f"--model is {clean(wanted, 80)!r}, and the engine serves {_names(entries)}")


def _names(entries: list[Mapping[str, Any]]) -> str:
    return ", ".join(clean(str(entry.get("id")), 80) for entry in entries[:8])


def _entry(models: Mapping[str, Any], wanted: str | None, notes: list[str]) -> Mapping[str, Any]:
    """What `/v1/models` says of the model to examine: `wanted`, else the first; empty where it says nothing."""
    entries = model_entries(models)
    if wanted is not None:
        found = next((entry for entry in entries if entry.get("id") == wanted), None)
        if entries and found is None:
            notes.append(f"the model {clean(wanted, 80)!r} is none of those that the engine names ({_names(entries)})")
        return found or {}
    if len(entries) > 1:
        notes.append(f"{len(entries)} models are served ({_names(entries)}): the first was taken; name one with "
                     "--model")
    return entries[0] if entries else {}


async def _pinned_model(client: EngineClient) -> str:
    """Name of the model of a server that lists none but, like transformers', names it when another is asked for."""
    asked = "?"
    _, body = await client.post_raw("/v1/completions", {"model": asked, "prompt": "x", "max_tokens": 1})
    try:
        said = error_text(load_json(body)) or ""
    except ValueError:
        said = ""
    match = _PINNED.search(said)
    if match is None:
        raise EngineProtocol(f"{client.url}/v1/models lists no model: name the one that is served with --model")
    return match.group(1)


async def _version(client: EngineClient) -> str | None:
    try:
        status, _, body = await client.get(client.dialect.version_path)
        answer = load_json(body) if status == 200 else None
    except (ValueError, EngineProtocol, EngineTimeout):
        answer = None
    version = answer.get("version") if isinstance(answer, Mapping) else None
    return clean(version, 80) if isinstance(version, str) else None


def _max_context(entry: Mapping[str, Any]) -> int | None:
    length = entry.get("max_model_len")
    if length is None and isinstance(entry.get("meta"), Mapping):
        length = entry["meta"].get("n_ctx")  # llama.cpp's, of a slot
    return length if type(length) is int and 0 < length < MAX_INT else None


def _root(entry: Mapping[str, Any], model: str) -> str | None:
    """Where the engine says it loaded the model from; a model named by an absolute path is its own root."""
    root = entry.get("root")
    if not isinstance(root, str):
        root = model if Path(model).is_absolute() else None
    return None if root is None else clean(root, _MAX_NAME_CHARS)


def _told(facts: EngineFacts, sample: KVSample) -> set[str]:
    """Capabilities that need no trial: the engine tells them or not."""
    kv = facts.kv or KVFacts()
    told = {
        "kv_metrics": sample.kv_usage is not None,
        "running_metrics": sample.running is not None and sample.waiting is not None,
        "prefix_cache": kv.prefix_caching is True,
        "capacity": kv.capacity_tokens is not None,
        "context_length": facts.max_context_tokens is not None,
    }
    return {name for name, is_so in told.items() if is_so}
