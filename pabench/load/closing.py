"""The end of a run: from its journals to tables and manifest. After a kill that is done when it is next read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path

from pabench.engines import dialect as find_dialect
from pabench.load import cache_state
from pabench.load.journal import Journaled, held, journals_in
from pabench.load.lag import quantiles_ms
from pabench.load.manifest import Manifest, read_manifest
from pabench.load.pool import worst
from pabench.load.prefix_blocks import counted_block_size, prefix_blocks
from pabench.load.records import (
    RequestRecord,
    read_requests,
    read_telemetry,
    write_requests,
    write_telemetry,
)
from pabench.load.replan import put_off, replan, those_over
from pabench.load.schedule import ScheduledRequest
from pabench.load.settle import count_outcomes, settle
from pabench.load.window import steady_window
from pabench.load.worker import End
from pabench.probe import ProbeSpec
from pabench.telemetry.vocabulary import KVSample

_REPORT_RECORDS = 1000
_USAGE = "usage counts"
_SHORT = "shorter than asked for"
Settled = Callable[[int], None]  # how many answers have been read


def close_run(
    folder: Path, manifest: Manifest, requests: Sequence[ScheduledRequest], spec: ProbeSpec | None, end: End,
    settled: Settled | None = None, api_key: str | None = None,
) -> None:
    """Parse, verify and write what the journals in `folder` and `end` hold of `requests`, then remove the journals.

    `api_key`: an engine may quote it in an error, and no record does. Of a run that was resumed, what was over before
    stays as it was written then. Raises RecordsUnwritable.
    """
    kv, journals = manifest.engine.kv, journals_in(folder)
    with Journaled(journals, end.left) as found:
        late = [one.asked_s - one.intended_s for one in found.exchanges.values() if one.asked_s is not None]
        _note_health(manifest, end, late)
        records = settle(requests, found.exchanges, whole=found.whole, dialect=find_dialect(manifest.engine.dialect),
                         spec=spec, block_size=None if kv is None else kv.block_size, unsent_kind=end.unsent_kind,
                         fixed_length="ignore_eos" in manifest.engine.capabilities, api_key=api_key)
        records = _with_blocks(records, manifest, requests)
        records = _with_earlier(records, read_requests(folder), _over_before(folder, manifest))
        _write(folder, manifest, _reported(records, settled), found.samples, requests)
    for journal in journals:
        journal.unlink(missing_ok=True)


def recover_run(folder: Path, api_key: str | None = None) -> Manifest:
    """Write the tables of a run that was killed, from its journals; its manifest when there is nothing to recover.

    What had been answered is kept; what was in flight counts as unsent. Raises UsageError while the run goes on.
    """
    manifest = read_manifest(folder)
    if not journals_in(folder) and manifest.status != "running":
        return manifest
    with held(folder):
        manifest = read_manifest(folder)  # it may have ended just now
        if journals_in(folder) or manifest.status == "running":
            _recover(folder, manifest, api_key)
    return manifest


def _recover(folder: Path, manifest: Manifest, api_key: str | None) -> None:
    schedule, spec = replan(folder, manifest)
    requests: Sequence[ScheduledRequest] = schedule.requests
    if manifest.resumed:
        requests = put_off(requests, manifest.resumed[-1])
    if manifest.status == "running":
        manifest.status = "interrupted"
        manifest.notes.append("the client was killed: recovered from its journals, what was in flight counts as unsent")
        manifest.unwatched.append(len(manifest.resumed))
    close_run(folder, manifest, requests, spec, End(unsent_kind="interrupt"), api_key=api_key)


def _note_health(manifest: Manifest, end: End, late_s: Sequence[float]) -> None:
    """How the client kept up: in what was measured now and, where a resumed run tells of it, before.

    Of a part that was recovered after a kill only the lateness is known: it has no vote on the stamps.
    """
    before = manifest.client
    known = before.cpu_share is not None or before.lateness_max_ms is not None
    parts = [end.health, *([before] if known else [])]
    end.health.lateness_p50_ms, end.health.lateness_p99_ms, end.health.lateness_max_ms = quantiles_ms(late_s)
    manifest.client = worst(parts)
    manifest.client.kernel_stamps = worst([one for one in parts if one.cpu_share is not None]).kernel_stamps


def _with_blocks(
    records: Iterable[RequestRecord], manifest: Manifest, requests: Sequence[ScheduledRequest]
) -> Iterator[RequestRecord]:
    """`records`, and in each the blocks that its prompt has in common with other sessions'."""
    workload, kv = manifest.workload, manifest.engine.kv
    may_share = workload.shared_prefix is not None or workload.trace is not None
    size = counted_block_size(None if kv is None else kv.block_size)
    blocks = prefix_blocks(requests, size) if may_share else {}
    for record in records:
        record.prefix_blocks = blocks.get(record.index, [])
        yield record


def _over_before(folder: Path, manifest: Manifest) -> Set[int]:
    """Indices of the requests that were over when the run was last resumed, as it found them then: its tables are those
    of before until they are written anew.
    """
    died = bool(manifest.resumed) and manifest.resumed[-1].died
    return set(those_over((record.without_tokens() for record in read_requests(folder)), died=died))


def _with_earlier(
    records: Iterable[RequestRecord], earlier: Iterator[RequestRecord], over: Set[int]
) -> Iterator[RequestRecord]:
    """`records`, and in place of those unsent what had become of them before the run was resumed, if they were `over`:
    the others were to be sent again.
    """
    for record in records:
        before = next(earlier, None)
        yield before if before is not None and before.index in over and record.outcome == "unsent" else record


def _reported(records: Iterable[RequestRecord], settled: Settled | None) -> Iterator[RequestRecord]:
    for number, record in enumerate(records, 1):
        yield record
        if settled is not None and number % _REPORT_RECORDS == 0:
            settled(number)


def _write(
    folder: Path, manifest: Manifest, passing: Iterable[RequestRecord], samples: Sequence[KVSample],
    requests: Sequence[ScheduledRequest],
) -> None:
    """Tables first, the manifest last: a manifest that says "complete" has its tables.

    What is kept a token is written as the records pass: that of a long run does not fit into memory.
    """
    records: list[RequestRecord] = []

    def keeping() -> Iterator[RequestRecord]:
        for record in passing:
            records.append(record.without_tokens())
            yield record

    write_requests(folder, keeping())
    manifest.outcomes = count_outcomes(records)
    manifest.duration_s = max((r.end_s for r in records if r.end_s is not None), default=0.0)
    manifest.window_s = manifest.workload.window_s or _steady_window(manifest, records, requests)
    manifest.notes = [note for note in manifest.notes if not note.startswith((_USAGE, _SHORT))]
    streamed = {one.index for one in requests if one.request.stream}
    manifest.notes += _usage_notes(records, streamed) + _short_notes(records)
    if manifest.workload.cache is not None:
        size = None if manifest.engine.kv is None else manifest.engine.kv.block_size
        until_s = min((one.at_s for one in manifest.resumed), default=math.inf)
        manifest.cache = cache_state.check(manifest.workload.cache, requests, records, size, until_s)
    if manifest.status == "running":
        manifest.status = "complete"
    # Those of before a resumption, up to where it went on; what a kill left written twice, tables there and journals
    # too, counts once.
    begin_s = min([*(sample.time_s for sample in samples), *(one.at_s for one in manifest.resumed[-1:])],
                  default=math.inf)
    write_telemetry(folder, [*(one for one in read_telemetry(folder) if one.time_s < begin_s), *samples])
    manifest.write(folder)


def _short_notes(records: Sequence[RequestRecord]) -> list[str]:
    """Of an engine that cannot be asked to go on; of any other a short answer is an error."""
    answered = [record for record in records if record.outcome == "ok"]
    short = sum(max(record.output_tokens, record.stream_tokens) < record.n * record.max_tokens
                if record.output_tokens is not None else any(reason != "length" for reason in record.finish_reasons)
                for record in answered)
    return [f"{_SHORT}: {short} of {len(answered)} answers, which ended of their own accord"] if short else []


def _steady_window(
    manifest: Manifest, records: Sequence[RequestRecord], requests: Sequence[ScheduledRequest]
) -> tuple[float, float] | None:
    """Where the client was watched, if there is one there."""
    later_turns = {one.index for one in requests if one.turn}
    spans = manifest.unwatched_spans
    watched = [one for one in records
               if one.sent_s is not None and not any(since <= one.sent_s < until for since, until in spans)]
    return (steady_window(watched, manifest.resumed, later_turns)
            or steady_window(records, manifest.resumed, later_turns))


def _usage_notes(records: Sequence[RequestRecord], streamed: Set[int]) -> list[str]:
    sent = [record for record in records if record.outcome in ("ok", "wrong")]
    outputs = sum(r.output_tokens is not None and r.output_tokens != r.stream_tokens
                  for r in sent if r.index in streamed)
    prompts = sum(r.usage_prompt_tokens is not None and r.usage_prompt_tokens != r.prompt_tokens for r in sent)
    notes = []
    if outputs:
        notes.append(f"{_USAGE} other output tokens than the stream holds in {outputs} of {len(sent)} answers")
    if prompts:
        notes.append(f"{_USAGE} other prompt tokens than were sent in {prompts} of {len(sent)} answers")
    return notes
