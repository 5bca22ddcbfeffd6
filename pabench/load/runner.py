"""One run from workload to files: plan, warm up, measure, settle, write. However it ends, what was measured is kept."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import aiohttp

from pabench.engines import dialect as find_dialect
from pabench.engines.base import EngineFacts
from pabench.engines.client import base_url
from pabench.errors import EngineUnreachable, UsageError
from pabench.load import cache_state
from pabench.load.client import LoadClient, PreparedRequest, prepare
from pabench.load.connection import Exchange
from pabench.load.journal import JOURNAL_FILE, Journal, JournalReader, read_journal
from pabench.load.line import clock
from pabench.load.manifest import Manifest, new_manifest, read_manifest
from pabench.load.measure import Measurement, Progress, no_collections, refusal
from pabench.load.records import (
    MANIFEST_FILE,
    RequestRecord,
    unwritable,
    write_requests,
    write_telemetry,
)
from pabench.load.schedule import Schedule, ScheduledRequest, plan
from pabench.load.settle import count_outcomes, settle
from pabench.load.window import steady_window
from pabench.load.workload import Workload
from pabench.probe import ProbeSpec, preset
from pabench.telemetry.scrape import Scraper
from pabench.telemetry.vocabulary import KVFacts, KVSample

_PROGRESS_RECORDS = 1000


class Examined(Protocol):
    """The part of `engines.doctor.Examination` that a run needs."""

    @property
    def facts(self) -> EngineFacts:
        """What the engine tells about itself."""
        ...

    @property
    def probe(self) -> ProbeSpec | None:
        """The probe that it serves; None where it serves another model."""
        ...


async def run_workload(
    examination: Examined, workload: Workload, out: Path, *, url: str, label: str, seed: int | None = None,
    progress: Progress | None = None, api_key: str | None = None,
) -> Manifest:
    """Run `workload` against the engine at `url` and write the run folder `out`.

    `seed`: the workload's own when None. `progress` is called about four times a second. The manifest's status says
    how it ended: "failed" when the engine died in mid-run. Cancellation (Ctrl-C) writes the files, with status
    "interrupted", and is raised on. Raises UsageError, EngineUnreachable and RecordsUnwritable.
    """
    url = base_url(url)
    seed = workload.seed if seed is None else seed
    facts, spec = examination.facts, examination.probe
    manifest = new_manifest(workload=workload, seed=seed, facts=facts, label=label, url=url, api_key=api_key,
                            probe_preset=None if spec is None else spec.preset)
    schedule = plan(workload, seed, facts, spec, manifest.request_prefix)
    manifest.schedule_digest = digest(schedule)
    manifest.notes += _planning_notes(schedule)
    speech = find_dialect(facts.dialect)

    def written(request: ScheduledRequest) -> PreparedRequest:
        return prepare(request, speech, facts.model)

    for request in schedule.requests:
        written(request)  # what the dialect cannot say is said now
    warmups = [written(request) for request in schedule.warmups]
    if (out / MANIFEST_FILE).exists():
        raise UsageError(f"{out} already holds a run: give another folder, or remove it first")
    if (why := await refusal(url)) is not None:
        raise EngineUnreachable(f"nothing answers at {url} ({why}): is the engine running, and is the URL right?")
    async with (
        LoadClient(url, timeout_s=workload.timeout_s, api_key=api_key) as client,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {api_key}"} if api_key else {}) as scraping,
    ):
        manifest.notes += await _warm_up(client, warmups)
        if workload.cache is not None:
            manifest.notes.append(await cache_state.bring_about(
                workload.cache, schedule.requests, client=client, http=scraping, written=written, seed=seed,
                block_size=None if facts.kv is None else facts.kv.block_size,
                reset_url=None if speech.cache_reset_path is None else url + speech.cache_reset_path))
        client.reset()
        _open_folder(out)
        manifest.write(out)
        scraper = Scraper(scraping, url, speech)
        journal = Journal(out)
        run = Measurement(url, workload, schedule, written, client, scraper, journal)
        try:
            with no_collections():
                await _measure(run, scraper, progress)
        except BaseException as error:
            manifest.status = "interrupted" if isinstance(error, asyncio.CancelledError) else "failed"
            manifest.failure = None if manifest.status == "interrupted" else f"{type(error).__name__}: {error}"
            raise
        finally:
            run.journal_samples()
            journal.close()
            if client.num_sent_again:
                manifest.notes.append(f"{client.num_sent_again} requests were sent again: the engine had closed the "
                                      "kept connection")
            _settle_run(out, manifest, run, client, scraper, schedule, spec, progress)
            journal.remove()
    if journal.error is not None:
        raise journal.error
    return manifest


def recover_run(folder: Path) -> Manifest:
    """Write the tables of a run that was killed, from its journal; its manifest when there is nothing to recover.

    What had been answered is kept; what was in flight counts as unsent. Raises UsageError while the run goes on.
    """
    manifest = read_manifest(folder)
    if not (folder / JOURNAL_FILE).exists() and manifest.status != "running":
        return manifest
    found, samples = read_journal(folder)
    exchanges = {exchange.index: exchange for exchange in found}
    engine = manifest.engine
    kv = None if engine.kv is None else KVFacts(**engine.kv.model_dump())
    facts = EngineFacts(dialect=engine.dialect, model=engine.model, max_context_tokens=engine.max_context_tokens,
                        version=engine.version, kv=kv, capabilities=frozenset(engine.capabilities))
    spec = None if manifest.probe_preset is None else preset(manifest.probe_preset)
    schedule = plan(manifest.workload, manifest.seed, facts, spec, manifest.request_prefix)
    if digest(schedule) != manifest.schedule_digest:
        raise UsageError(f"{folder} was planned by pabench {manifest.versions.get('pabench')}, whose schedules differ "
                         "from this one's: recover it with that version")
    records = settle(schedule.requests, exchanges, 0.0, whole=lambda exchange: exchange,
                     dialect=find_dialect(engine.dialect), spec=spec, block_size=None if kv is None else kv.block_size,
                     unsent_kind="interrupt", fixed_length="ignore_eos" in engine.capabilities)
    if manifest.status == "running":
        manifest.status = "interrupted"
        manifest.notes.append("the client was killed: recovered from its journal, what was in flight counts as unsent")
    _write_run(folder, manifest, records, samples, schedule)
    (folder / JOURNAL_FILE).unlink(missing_ok=True)
    return manifest


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


def _settle_run(
    out: Path, manifest: Manifest, run: Measurement, client: LoadClient, scraper: Scraper, schedule: Schedule,
    spec: ProbeSpec | None, progress: Progress | None,
) -> None:
    """Parse, verify and write what was measured, times from the start of the run."""
    start_s = run.start_s
    manifest.zero_at = (datetime.now(UTC) - timedelta(seconds=clock() - start_s)).isoformat()
    samples = [dataclasses.replace(sample, time_s=sample.time_s - start_s) for sample in scraper.samples]
    kv = manifest.engine.kv
    late = [e.sent_s - e.intended_s for e in run.exchanges.values() if e.sent_s is not None]
    manifest.client = run.lag.health(late, kernel_stamps=client.kernel_stamps, scrapes=len(samples),
                                     failed_scrapes=scraper.failed + scraper.missed)
    if run.failure is not None:
        manifest.status, manifest.failure = "failed", run.failure
    with JournalReader(out, start_s) as reader:
        records = settle(schedule.requests, run.exchanges, start_s, whole=reader.whole,
                         dialect=find_dialect(manifest.engine.dialect), spec=spec,
                         block_size=None if kv is None else kv.block_size, unsent_kind=run.unsent_kind,
                         fixed_length="ignore_eos" in manifest.engine.capabilities)
        _write_run(out, manifest, _watched(records, run, progress), samples, schedule)


def _watched(records: Iterable[RequestRecord], run: Measurement, progress: Progress | None) -> Iterator[RequestRecord]:
    """`records` as they pass, with progress."""
    for settled, record in enumerate(records, 1):
        yield record
        if progress is not None and settled % _PROGRESS_RECORDS == 0:
            progress(dataclasses.replace(run.state(), settled=settled))


async def _measure(run: Measurement, scraper: Scraper, progress: Progress | None) -> None:
    await scraper.start()
    await asyncio.sleep(0)  # its first scrape is on its way before the first request
    try:
        await run.run(progress)
    finally:
        await scraper.stop()


async def _warm_up(client: LoadClient, warmups: Sequence[PreparedRequest]) -> list[str]:
    """Send the warm-up requests all at once; notes on those that failed."""
    exchanges: list[Exchange] = await asyncio.gather(*(client.send(request, clock()) for request in warmups))
    failed = [exchange for exchange in exchanges if exchange.fault is not None or exchange.status != 200]
    if not failed:
        return []
    why = failed[0].fault_text or failed[0].fault or f"HTTP {failed[0].status}"
    return [f"{len(failed)} of {len(exchanges)} warm-up requests failed: {why}"]


def _planning_notes(schedule: Schedule) -> list[str]:
    notes = []
    if schedule.num_clipped:
        notes.append(f"{schedule.num_clipped} of {len(schedule.requests)} requests made shorter by the engine's "
                     "context")
    if schedule.num_left_out:
        notes.append(f"{schedule.num_left_out} turns left out: their prompts would have outgrown the context")
    if schedule.isolation == "salts":
        notes.append("requests at the same time share tokens under distinct salts: a foreign slot reads as not found")
    if schedule.isolation == "chance":
        notes.append("requests at the same time may share tokens and salts: a foreign slot is told only where they "
                     "differ")
    return notes


def _settling_notes(records: Sequence[RequestRecord]) -> list[str]:
    sent = [record for record in records if record.outcome in ("ok", "wrong")]
    outputs = sum(r.output_tokens is not None and r.output_tokens != r.stream_tokens for r in sent)
    prompts = sum(r.usage_prompt_tokens is not None and r.usage_prompt_tokens != r.prompt_tokens for r in sent)
    notes = []
    if outputs:
        notes.append(f"usage counts other output tokens than the stream holds in {outputs} of {len(sent)} answers")
    if prompts:
        notes.append(f"usage counts other prompt tokens than were sent in {prompts} of {len(sent)} answers")
    return notes


def _open_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def _write_run(
    out: Path, manifest: Manifest, passing: Iterable[RequestRecord], samples: Sequence[KVSample], schedule: Schedule
) -> None:
    """Tables first, the manifest last: a manifest that says "complete" has its tables.

    What is kept a token is written as the records pass: that of a long run does not fit into memory.
    """
    records: list[RequestRecord] = []

    def keeping() -> Iterator[RequestRecord]:
        for record in passing:
            records.append(dataclasses.replace(record, token_times_s=[], token_choices=[], token_ids=[]))
            yield record

    write_requests(out, keeping())
    manifest.outcomes = count_outcomes(records)
    manifest.duration_s = max((r.end_s for r in records if r.end_s is not None), default=0.0)
    manifest.window_s = manifest.workload.window_s or steady_window(records)
    manifest.notes += _settling_notes(records)
    if manifest.workload.cache is not None:
        size = None if manifest.engine.kv is None else manifest.engine.kv.block_size
        manifest.cache = cache_state.check(manifest.workload.cache, schedule.requests, records, size)
    if manifest.status == "running":
        manifest.status = "complete"
    write_telemetry(out, samples)
    manifest.write(out)
