"""One run from workload to files: plan, warm up, measure, settle, write. However it ends, what was measured is kept."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import aiohttp

from pabench.engines import dialect as find_dialect
from pabench.engines.address import base_url
from pabench.engines.base import Dialect, EngineFacts
from pabench.engines.keys import authorization
from pabench.errors import EngineUnreachable, UsageError
from pabench.load import cache_state
from pabench.load.client import LoadClient, PreparedRequest, prepare
from pabench.load.closing import close_run, recover_run
from pabench.load.journal import TELEMETRY, Journal, held, journal_path
from pabench.load.line import clock
from pabench.load.manifest import Manifest, clean_url, describe_engine, like_pools, new_manifest
from pabench.load.measure import Progress, ProgressState, refusal
from pabench.load.planning import plan
from pabench.load.pool import ONE_PROCESS, Placement, WorkerPool, split_job
from pabench.load.records import MANIFEST_FILE, RecordsUnwritable, read_requests, unwritable
from pabench.load.replan import digest, put_off, replan, resumption, those_over
from pabench.load.schedule import Schedule, ScheduledRequest, put_into_lanes
from pabench.load.worker import Job
from pabench.load.workload import CacheState, Workload
from pabench.probe import ProbeSpec
from pabench.telemetry.scrape import Scraper


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
    progress: Progress | None = None, api_key: str | None = None, placement: Placement = ONE_PROCESS,
    engine_started_at: str | None = None,
) -> Manifest:
    """Run `workload` against the engine at `url` and write the run folder `out`.

    `seed`: the workload's own when None. `engine_started_at`: the manifest's. `progress` is called about four times a
    second. The manifest's status says how it ended: "failed" when the engine died in mid-run. Cancellation (Ctrl-C)
    writes the files, with status "interrupted", and is raised on. Raises UsageError, EngineUnreachable,
    RecordsUnwritable, and WorkerDied.
    """
    url = base_url(url)
    seed = workload.seed if seed is None else seed
    facts, spec = examination.facts, examination.probe
    manifest = new_manifest(workload=workload, seed=seed, facts=facts, label=label, url=url, api_key=api_key,
                            probe_preset=None if spec is None else spec.preset,
                            engine_started_at=engine_started_at)
    schedule = plan(workload, seed, facts, spec, manifest.request_prefix)
    manifest.schedule_digest = digest(schedule)
    manifest.notes += _planning_notes(schedule)
    for request in schedule.requests:
        prepare(request, find_dialect(facts.dialect), facts.model)  # what the dialect cannot say is said now
    _refuse_taken(out)
    job = Job(url, workload, facts.dialect, facts.model, schedule.lanes(), schedule.warmups, out,
              until_s=workload.duration_s or float("inf"), api_key=api_key)
    return await _Run(manifest, schedule.requests, spec, out, job, placement, progress).carry()


async def resume_run(
    examination: Examined, folder: Path, *, url: str, progress: Progress | None = None, api_key: str | None = None,
    placement: Placement = ONE_PROCESS,
) -> Manifest:
    """Go on with the run in `folder`, which was interrupted or killed, or whose engine died.

    What had no answer is sent, what was in flight then is sent again; arrivals to come are put off by the break, in
    which the run's clock stands still. Raises like `run_workload`, and UsageError where there is nothing to resume or
    the engine is another one.
    """
    url = base_url(url)
    manifest = recover_run(folder, api_key)
    if manifest.status == "complete":
        raise UsageError(f"the run in {folder} is complete: there is nothing to resume")
    _refuse_another(examination, manifest)
    schedule, spec = replan(folder, manifest)
    records = [record.without_tokens() for record in read_requests(folder)]
    died = manifest.status == "failed"
    over = those_over(records, died=died)
    rest = [request for request in schedule.requests if request.index not in over]
    if not rest:
        raise UsageError(f"every request of the run in {folder} has its outcome: there is nothing to resume")
    went_on = resumption(records, over, rest, died=died)
    at_s, shift_s = went_on.at_s, went_on.shift_s
    manifest.resumed.append(went_on)
    manifest.status, manifest.failure, manifest.validity, manifest.url = "running", None, None, clean_url(url)
    manifest.notes.append(f"resumed at {at_s:.1f} s of its clock: {len(over)} requests were over, {len(rest)} were to "
                          "be sent")
    workload = manifest.workload
    requests = put_off(schedule.requests, went_on)
    lanes = put_into_lanes([requests[one.index] for one in rest], at_s)
    until_s = float("inf") if workload.duration_s is None else workload.duration_s + (
        shift_s if workload.users is None else 0.0)
    job = Job(url, workload, manifest.engine.dialect, manifest.engine.model, lanes, schedule.warmups, folder,
              until_s=until_s, api_key=api_key)
    return await _Run(manifest, requests, spec, folder, job, placement, progress, elapsed_s=at_s).carry()


@dataclasses.dataclass
class _Run:
    """A run that is planned. `requests`: all of its schedule; `job`: what is to be sent; `elapsed_s`: before."""

    manifest: Manifest
    requests: Sequence[ScheduledRequest]
    spec: ProbeSpec | None
    out: Path
    job: Job
    placement: Placement
    progress: Progress | None
    elapsed_s: float = 0.0

    async def carry(self) -> Manifest:
        """Do it. Raises as `run_workload` says."""
        if (why := await refusal(self.job.url)) is not None:
            raise EngineUnreachable(f"nothing answers at {self.job.url} ({why}): is the engine running, and is the URL "
                                    "right?")
        jobs = split_job(self.job, self.placement.processes)
        self.manifest.workers = len(jobs)
        headers = authorization(self.job.api_key)
        async with WorkerPool(self.placement.workers_for(jobs)) as pool, aiohttp.ClientSession(headers=headers) as http:
            self.manifest.notes += await pool.prepare()
            dialect = find_dialect(self.job.dialect)
            if self.job.workload.cache is not None and not self.manifest.resumed:
                self.manifest.notes.append(await self._bring_about(self.job.workload.cache, dialect, http))
            _open_folder(self.out)
            with held(self.out):
                if not self.manifest.resumed:
                    _refuse_taken(self.out)  # it may have begun, and ended, while this one was prepared
                self.manifest.write(self.out)
                scraper = Scraper(http, self.job.url, dialect)
                await scraper.start()  # its first scrape comes before the first request, however long it takes
                await self._measure(pool, scraper)
        return self.manifest

    async def _measure(self, pool: WorkerPool, scraper: Scraper) -> None:
        start_s = clock() + self.placement.lead_s - self.elapsed_s
        watch = _Watch(scraper, Journal(journal_path(self.out, TELEMETRY), start_s), self.progress)
        manifest = self.manifest
        try:
            await pool.run(start_s, watch)
        except BaseException as error:
            manifest.status = "interrupted" if isinstance(error, asyncio.CancelledError) else "failed"
            manifest.failure = None if manifest.status == "interrupted" else f"{type(error).__name__}: {error}"
            raise
        finally:
            try:  # who breaks off the wait for late counters loses no more than these
                await scraper.stop(patient=manifest.status == "running")
            finally:
                watch.close()
                try:
                    await pool.close()
                finally:
                    self._close(pool, scraper, watch, start_s)

    def _close(self, pool: WorkerPool, scraper: Scraper, watch: _Watch, start_s: float) -> None:
        """The books, however the measurement ended."""
        manifest, end = self.manifest, pool.end
        if manifest.zero_at is None:
            manifest.zero_at = (datetime.now(UTC) - timedelta(seconds=clock() - start_s)).isoformat()
        end.health.scrapes, end.health.failed_scrapes = len(scraper.samples), scraper.failed + scraper.missed
        if end.num_sent_again:
            manifest.notes.append(f"{end.num_sent_again} requests were sent again: the engine had closed the kept "
                                  "connection")
        if end.failure is not None:
            manifest.status, manifest.failure = "failed", end.failure
        close_run(self.out, manifest, self.requests, self.spec, end, watch.settled, self.job.api_key)
        if end.unwritable is not None:
            raise RecordsUnwritable(end.unwritable)

    async def _bring_about(self, state: CacheState, dialect: Dialect, http: aiohttp.ClientSession) -> str:
        def written(request: ScheduledRequest) -> PreparedRequest:
            return prepare(request, dialect, self.job.model)

        async with LoadClient(self.job.url, timeout_s=self.job.workload.timeout_s, api_key=self.job.api_key) as client:
            return await cache_state.bring_about(
                state, self.requests, client=client, http=http, written=written, seed=self.manifest.seed,
                block_size=None if self.manifest.engine.kv is None else self.manifest.engine.kv.block_size,
                reset_url=None if dialect.cache_reset_path is None else self.job.url + dialect.cache_reset_path)


class _Watch:
    """Called with the load's progress: adds what the engine's gauges say, and hands them to the journal."""

    def __init__(self, scraper: Scraper, journal: Journal, progress: Progress | None) -> None:
        self._scraper, self._journal, self._progress = scraper, journal, progress
        self._num_journaled = 0
        self._last: ProgressState | None = None

    def __call__(self, state: ProgressState) -> None:
        self._journal_samples()
        if self._scraper.samples:
            sample = self._scraper.samples[-1]
            state = dataclasses.replace(state, kv_usage=sample.kv_usage, running=sample.running, waiting=sample.waiting)
        self._last = state
        if self._progress is not None:
            self._progress(state)

    def settled(self, number: int) -> None:
        """Afterwards: so many answers have been read."""
        if self._progress is not None and self._last is not None:
            self._progress(dataclasses.replace(self._last, settled=number))

    def close(self) -> None:
        """Nothing comes any more."""
        self._journal_samples()
        self._journal.close()

    def _journal_samples(self) -> None:
        for sample in self._scraper.samples[self._num_journaled:]:
            self._journal.add(sample)
        self._num_journaled = len(self._scraper.samples)


def _refuse_another(examination: Examined, manifest: Manifest) -> None:
    """Raise UsageError where the engine is not the one that the run began with. It may have died since, and have found
    room for a few blocks more or less: that it may. What is told of its cache on one side alone tells of no other.
    """
    now, then = describe_engine(examination.facts), manifest.engine
    if now.kv is None or then.kv is None:
        now.kv = then.kv
    else:
        for name in type(then.kv).model_fields:
            told = [getattr(kv, name) for kv in (now.kv, then.kv)]
            if None in told or (name == "num_blocks" and like_pools(told)):
                setattr(now.kv, name, told[1])
    differing = [f"{name} is {getattr(now, name)!r}, was {getattr(then, name)!r}"
                 for name in type(now).model_fields if getattr(now, name) != getattr(then, name)]
    preset_now = None if examination.probe is None else examination.probe.preset
    if preset_now != manifest.probe_preset:
        differing.append(f"probe is {preset_now!r}, was {manifest.probe_preset!r}")
    if differing:
        raise UsageError(f"a run is resumed on the engine that it began with, and this is another: "
                         f"{'; '.join(differing)}")


def _planning_notes(schedule: Schedule) -> list[str]:
    notes = list(schedule.notes)
    if not any(one.request.stream or one.request.beam_width for one in schedule.requests):
        notes.append("answers come whole, since the engine did not stream when it was examined: there is no time to a "
                     "first token, and none between tokens")
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


def _refuse_taken(out: Path) -> None:
    if (out / MANIFEST_FILE).exists():
        raise UsageError(f"{out} already holds a run: give another folder, or remove it first")


def _open_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error, is_folder=True) from error
