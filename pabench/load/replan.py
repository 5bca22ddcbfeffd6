"""A run's schedule once more, from its manifest: what recovers or resumes a run has to know what it had planned."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load.manifest import EngineRecord, Manifest
from pabench.load.planning import plan
from pabench.load.records import RequestRecord
from pabench.load.schedule import Schedule, ScheduledRequest
from pabench.probe import ProbeSpec, preset
from pabench.telemetry.vocabulary import KVFacts


def digest(schedule: Schedule) -> str:
    """Fingerprint of all requests: two runs with the same one carried the same load."""
    total = hashlib.sha256()
    for one in schedule.requests:
        request = dataclasses.replace(one.request, request_id=None)  # it names the run as well
        said = dataclasses.astuple(request)
        if request.priority is None:  # the last field: schedules without it keep the digests that they had before it
            said = said[:-1]
        total.update(repr((one.user, one.intended_s, one.cancel_after_tokens, said)).encode())
    return total.hexdigest()


def replan(folder: Path, manifest: Manifest) -> tuple[Schedule, ProbeSpec | None]:
    """The schedule of the run in `folder`, as it was planned, and the probe that it was planned for.

    Raises UsageError where this pabench plans another one.
    """
    spec = None if manifest.probe_preset is None else preset(manifest.probe_preset)
    schedule = plan(manifest.workload, manifest.seed, facts_of(manifest.engine), spec, manifest.request_prefix)
    if digest(schedule) != manifest.schedule_digest:
        raise UsageError(f"{folder} was planned by pabench {manifest.versions.get('pabench')}, whose schedules differ "
                         "from this one's: use that version")
    return schedule, spec


def facts_of(engine: EngineRecord) -> EngineFacts:
    """What is needed of an engine's facts to plan."""
    kv = None if engine.kv is None else KVFacts(**engine.kv.model_dump())
    return EngineFacts(dialect=engine.dialect, model=engine.model, max_context_tokens=engine.max_context_tokens,
                       version=engine.version, kv=kv, capabilities=frozenset(engine.capabilities))


def is_over(record: RequestRecord) -> bool:
    """Whether a request has its outcome for good; if not, a run that is resumed sends it, perhaps again."""
    return record.outcome != "unsent" and (record.outcome, record.error_kind) != ("aborted", "interrupt")


def put_off(requests: Sequence[ScheduledRequest], by_s: float) -> list[ScheduledRequest]:
    """`requests` with their arrivals `by_s` seconds later."""
    return [one if one.intended_s is None else dataclasses.replace(one, intended_s=one.intended_s + by_s)
            for one in requests]
