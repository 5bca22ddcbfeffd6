"""`run.log` in a run folder: what the live view says, as plain text, a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from pabench.analysis.failures import COLUMNS, failed_ways
from pabench.engines.cleaning import WHOLE, clean, without_key
from pabench.errors import UsageError
from pabench.load import Progress, ProgressState
from pabench.load.manifest import read_manifest
from pabench.load.records import MANIFEST_FILE, REQUESTS_FILE, unwritable

LOG_FILE = "run.log"
EVERY_S = 5.0


def state_text(state: ProgressState, target_per_s: float | None) -> str:
    """How far a run is, without the number of requests. `target_per_s`: of an open loop."""
    if state.settled:
        return f"reading answers, {state.settled / state.total:.0%}"
    elapsed_s = max(state.elapsed_s, 1e-3)
    parts = [f"{state.in_flight} in flight", f"{state.output_tokens / elapsed_s:,.0f} tok/s"]
    if target_per_s is not None:
        parts.insert(0, f"{(state.done + state.in_flight) / elapsed_s:.3g} of {target_per_s:.3g} req/s")
    if state.ttft_s is not None and state.itl_s is not None:
        parts.append(f"TTFT {state.ttft_s * 1e3:.0f} ms, ITL {state.itl_s * 1e3:.1f} ms")
    if state.running is not None:
        parts.append(f"running {state.running:.0f}")
    if state.kv_usage is not None:
        parts.append(f"KV {state.kv_usage:.0%}")
    if state.errors:
        parts.append(f"{state.errors} errors")
    return ", ".join(parts)


@contextmanager
def run_log(
    folder: Path, head: str, progress: Progress, target_per_s: float | None = None, *, secret: str | None = None
) -> Iterator[Progress]:
    """`progress`, with the log of the run in `folder` beside it. `head`: what is run; `secret`: a key, kept out.

    It begins with the first progress, for there is no folder before. Raises RecordsUnwritable.
    """
    waiting: list[str] = []
    due_s = 0.0

    def note(text: str) -> None:
        waiting.append(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {clean(without_key(text, secret), WHOLE)}\n")

    def write() -> None:
        try:
            with (folder / LOG_FILE).open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(waiting)
        except OSError as error:
            raise unwritable(folder / LOG_FILE, error) from error
        waiting.clear()

    def show(state: ProgressState) -> None:
        nonlocal due_s
        progress(state)
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + EVERY_S
            note(f"{state.done} of {state.total}, {state_text(state, target_per_s)}")
            write()

    note(f"{head}: planning, warming up")
    ending, refused = "ended", False
    try:
        yield show
    except BaseException as error:
        ending = "interrupted" if isinstance(error, KeyboardInterrupt) else f"broken off ({error!r})"
        refused = isinstance(error, UsageError) and not due_s  # what the folder may hold is of another run
        raise
    finally:
        if not refused and (folder / MANIFEST_FILE).exists():
            for line in _told(folder, ending):
                note(line)
            write()


def _told(folder: Path, ending: str) -> Iterator[str]:
    """The end of the run, as its manifest has it."""
    manifest = read_manifest(folder)
    yield from (f"note: {text}" for text in manifest.notes)
    if (folder / REQUESTS_FILE).exists():
        requests = pq.read_table(folder / REQUESTS_FILE, columns=list(COLUMNS)).to_pandas()
        yield from (way.text for way in failed_ways(requests))
    counts = ", ".join(f"{count} {name}" for name, count in manifest.outcomes.items() if count)
    why = f" ({manifest.failure})" if manifest.failure else ""
    yield f"{ending}: {manifest.status}{why}; {counts or 'no request'}"
