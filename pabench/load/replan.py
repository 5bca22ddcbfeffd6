"""A run's schedule once more, from its manifest: what recovers or resumes a run has to know what it had planned."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load.manifest import EngineRecord, Manifest, Resumption
from pabench.load.planning import plan
from pabench.load.records import RequestRecord
from pabench.load.schedule import Schedule, ScheduledRequest
from pabench.probe import ProbeSpec, preset
from pabench.telemetry.vocabulary import KVFacts

_UNANSWERED = {"connect", "reset"}


# From the end, as long as they say nothing: schedules keep the digests that they had before there were such fields.
_LAST_FIELDS: tuple[object, ...] = ((), None)  # images, priority


def digest(schedule: Schedule) -> str:
    """Fingerprint of all requests: two runs with the same one carried the same load."""
    total = hashlib.sha256()
    for one in schedule.requests:
        request = dataclasses.replace(one.request, request_id=None)  # it names the run as well
        said = dataclasses.astuple(request)
        for unsaid in _LAST_FIELDS:
            if said[-1] != unsaid:
                break
            said = said[:-1]
        total.update(repr((one.user, one.intended_s, one.cancel_after_tokens, said)).encode())
    return total.hexdigest()


def replan(folder: Path, manifest: Manifest) -> tuple[Schedule, ProbeSpec | None]:
    """The schedule of the run in `folder`, as it was planned, and the probe that it was planned for.

    Raises UsageError where this pabench plans another one, or its trace is not there.
    """
    trace = manifest.workload.trace
    if trace is not None and not Path(trace).is_file():
        raise UsageError(f"{folder} was planned from the trace {trace}, which is not there: go to the folder that the "
                         "run was started in")
    spec = None if manifest.probe_preset is None else preset(manifest.probe_preset)
    schedule = plan(manifest.workload, manifest.seed, facts_of(manifest.engine), spec, manifest.request_prefix,
                    anew=False)
    if digest(schedule) != manifest.schedule_digest:
        trace_too = "" if trace is None else f", and the trace {trace} as it was"
        raise UsageError(f"{folder} was planned by pabench {manifest.versions.get('pabench')}, whose schedules differ "
                         f"from this one's: use that version{trace_too}")
    return schedule, spec


def facts_of(engine: EngineRecord) -> EngineFacts:
    """What is needed of an engine's facts to plan."""
    kv = None if engine.kv is None else KVFacts(**engine.kv.model_dump())
    return EngineFacts(dialect=engine.dialect, model=engine.model, max_context_tokens=engine.max_context_tokens,
                       version=engine.version, kv=kv, capabilities=frozenset(engine.capabilities))


def is_over(record: RequestRecord) -> bool:
    """Whether a request has its outcome for good; if not, a run that is resumed sends it, perhaps again."""
    return record.outcome != "unsent" and (record.outcome, record.error_kind) != ("aborted", "interrupt")


def those_over(records: Iterable[RequestRecord], *, died: bool) -> dict[int, RequestRecord]:
    """Of the records of a run that was broken off those that have their outcome for good, by index.

    `died`: the engine did. Then what broke since it last took a request that it answered is its death's, and will be
    sent again. (Not since its last answer: one that ends in good order takes no connection, but ends its answers.)
    """
    over = {record.index: record for record in records if is_over(record)}
    if not died:
        return over
    last_s = max((record.sent_s for record in over.values()
                  if record.sent_s is not None and record.error_kind not in _UNANSWERED), default=0.0)
    return {index: record for index, record in over.items()
            if record.error_kind not in _UNANSWERED or (record.end_s or 0.0) <= last_s}


def resumption(
    records: Iterable[RequestRecord], over: Mapping[int, RequestRecord], rest: Sequence[ScheduledRequest], *, died: bool
) -> Resumption:
    """When a run with these `records`, of which some are `over`, goes on with `rest`, and by how much what was yet to
    arrive is put off: by the break, in which the run's clock stands still. `died`: the engine did.
    """
    not_over = [record for record in records if record.index not in over]
    at_s = max((record.end_s for record in over.values() if record.end_s is not None), default=0.0)
    sent = {record.index for record in not_over if record.sent_s is not None}  # in flight or broken
    to_come = (one.intended_s for one in rest if one.intended_s is not None and one.index not in sent)
    # After a kill nothing is known of what was in flight but when it was due.
    came_s = (record.intended_s if record.sent_s is None else record.sent_s for record in not_over)
    return Resumption(at_s=at_s, shift_s=at_s - min(to_come, default=at_s), died=died,
                      again_s=min((time_s for time_s in came_s if time_s <= at_s), default=None))


def put_off(requests: Sequence[ScheduledRequest], resumed: Resumption) -> list[ScheduledRequest]:
    """`requests` with their arrivals as a resumed run has them: what was in flight at the break arrives at once."""
    return [one if one.intended_s is None else
            dataclasses.replace(one, intended_s=max(one.intended_s + resumed.shift_s, resumed.at_s))
            for one in requests]
