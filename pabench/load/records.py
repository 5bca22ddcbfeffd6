"""A run on disk: one Parquet row a request, one a telemetry sample, and a JSON manifest.

A run is a folder:

    manifest.json      what was run, against what, with what, and how it ended (`manifest.Manifest`)
    requests.parquet   REQUEST_SCHEMA, one row a scheduled request, whatever became of it
    telemetry.parquet  TELEMETRY_SCHEMA, one row a scrape
    journal-*.bin      only while it runs, and after a kill: answers as they came (`journal.py`)

Times are seconds on one monotonic clock, zero at the start of the run. Every write is atomic (a temporary file,
then a rename), so a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pabench.errors import PabenchError
from pabench.telemetry.vocabulary import KVSample

SCHEMA_VERSION = 3  # of manifest.json; earlier ones are read too (`upgrade.py`)
MANIFEST_FILE = "manifest.json"
REQUESTS_FILE = "requests.parquet"
TELEMETRY_FILE = "telemetry.parquet"
_GROUP_ROWS = 4096

# Every scheduled request ends in exactly one of these.
OUTCOMES = ("ok", "wrong", "error", "timeout", "aborted", "unsent")

# Why a request is not "ok". The first group goes with outcome "error".
ERROR_KINDS = (
    "connect",      # no connection
    "client",       # this machine's fault: no more files or ports
    "reset",        # the connection broke
    "http",         # status 4xx or 5xx
    "stream",       # an error inside an answer of status 200
    "protocol",     # not what the dialect promises
    "truncated",    # the stream ended without a finish reason
    "empty",        # finished without a token
    "length",       # not as many tokens, or samples, as asked for
    "planned",      # aborted: the workload said so (cancel_share)
    "interrupt",    # aborted or unsent: the run was interrupted
    "engine-died",  # unsent: nothing answered any more
    "duration",     # unsent: the workload's duration_s was over
)


@dataclass(slots=True)
class RequestRecord:
    """What became of one scheduled request."""

    request_id: str
    index: int                          # position in the schedule
    user: int | None                    # closed loop: which user sent it
    intended_s: float                   # when the schedule says it starts
    sent_s: float | None = None         # when its bytes left
    first_s: float | None = None        # first chunk with a token
    last_s: float | None = None         # last chunk with a token
    end_s: float | None = None          # connection done, or given up
    outcome: str = "unsent"             # one of OUTCOMES
    error_kind: str | None = None       # one of ERROR_KINDS
    error_text: str | None = None       # engine-supplied: hostile, escape before showing
    http_status: int | None = None
    prompt_tokens: int = 0              # as sent
    max_tokens: int = 0                 # asked for, per choice
    n: int = 1
    usage_prompt_tokens: int | None = None  # as the engine counts the prompt
    output_tokens: int | None = None    # from usage, over all choices
    stream_tokens: int = 0              # counted in the answer, over all choices
    cached_tokens: int | None = None    # from usage
    verified_tokens: int | None = None  # equal to the oracle; None where the workload is not on the probe
    wrong_tokens: int | None = None
    finish_reasons: list[str] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)   # arrival of each token
    token_choices: list[int] = field(default_factory=list)     # choice index of each of those
    token_ids: list[int] = field(default_factory=list)         # id of each, empty where the engine gives none
    priority: int | None = None         # as asked for, lower first; None: the workload has none
    diagnosis: str | None = None        # JSON of probe.diagnosis.Diagnosis when outcome is "wrong"
    asked_s: float | None = None        # when the client turned to it: a connection is opened between this and sent_s
    prefix_blocks: list[int] | None = None  # of its prompt, shared with other sessions' (`prefix_blocks.py`)

    def without_tokens(self) -> RequestRecord:
        """A copy that leaves out what is kept per token: that of a long run does not fit into memory."""
        return replace(self, token_times_s=[], token_choices=[], token_ids=[], prefix_blocks=None)


REQUEST_SCHEMA = pa.schema([
    ("request_id", pa.string()), ("index", pa.int64()), ("user", pa.int64()),
    ("intended_s", pa.float64()), ("sent_s", pa.float64()), ("first_s", pa.float64()),
    ("last_s", pa.float64()), ("end_s", pa.float64()),
    ("outcome", pa.string()), ("error_kind", pa.string()), ("error_text", pa.string()), ("http_status", pa.int64()),
    ("prompt_tokens", pa.int64()), ("max_tokens", pa.int64()), ("n", pa.int64()),
    ("usage_prompt_tokens", pa.int64()), ("output_tokens", pa.int64()), ("stream_tokens", pa.int64()),
    ("cached_tokens", pa.int64()), ("verified_tokens", pa.int64()), ("wrong_tokens", pa.int64()),
    ("finish_reasons", pa.list_(pa.string())), ("token_times_s", pa.list_(pa.float64())),
    ("token_choices", pa.list_(pa.int64())), ("token_ids", pa.list_(pa.int64())), ("diagnosis", pa.string()),
    ("priority", pa.int64()), ("asked_s", pa.float64()), ("prefix_blocks", pa.list_(pa.int32())),
])
ADDED_COLUMNS = frozenset({"priority", "asked_s", "prefix_blocks"})  # that older folders lack: nothing is known of them


TELEMETRY_SCHEMA = pa.schema([(column.name, pa.float64()) for column in fields(KVSample)])


class RecordsUnwritable(PabenchError):
    """The run folder takes no more, as on a full disk. What was written before stays readable."""


def write_requests(folder: Path, records: Iterable[RequestRecord]) -> None:
    """Write `requests.parquet`, a row group at a time: `records` may come one by one. Raises RecordsUnwritable."""
    with _replacing(folder / REQUESTS_FILE) as file, pq.ParquetWriter(file, REQUEST_SCHEMA, compression="zstd") as out:
        remaining = iter(records)
        while group := list(islice(remaining, _GROUP_ROWS)):
            columns = {name: [getattr(record, name) for record in group] for name in REQUEST_SCHEMA.names}
            out.write_table(pa.table(columns, schema=REQUEST_SCHEMA))


def read_requests(folder: Path) -> Iterator[RequestRecord]:
    """What `write_requests` wrote, a row group at a time; nothing where there is no such file."""
    path = folder / REQUESTS_FILE
    if not path.exists():
        return
    with pq.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                yield RequestRecord(**row)


def read_telemetry(folder: Path) -> list[KVSample]:
    """What `write_telemetry` wrote; nothing where there is no such file."""
    path = folder / TELEMETRY_FILE
    return [KVSample(**row) for row in pq.read_table(path).to_pylist()] if path.exists() else []


def write_telemetry(folder: Path, samples: Sequence[KVSample]) -> None:
    """Write `telemetry.parquet`. Raises RecordsUnwritable."""
    columns = {name: [getattr(sample, name) for sample in samples] for name in TELEMETRY_SCHEMA.names}
    with _replacing(folder / TELEMETRY_FILE) as file:
        pq.write_table(pa.table(columns, schema=TELEMETRY_SCHEMA), file, compression="zstd")


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all. Raises RecordsUnwritable."""
    with _replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when all went well."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        _discard(part)


def unwritable(path: Path, error: OSError, *, is_folder: bool = False) -> RecordsUnwritable:
    """The error to raise when `path`, a file in a run folder or beside runs, or a run folder itself, could not be
    written.
    """
    kept = "" if is_folder or not _holds_runs(path.parent) else f"; what was written before is kept in {path.parent}"
    room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return RecordsUnwritable(f"cannot write {path}: {error.strerror or error}{kept}: {room}give another folder")


def _holds_runs(folder: Path) -> bool:
    """Whether there is a run in it, or below, as deep as a gate has its own."""
    try:
        return any(next(folder.glob(f"{below}{MANIFEST_FILE}"), None) is not None for below in ("", "*/", "*/*/"))
    except OSError:
        return False


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
