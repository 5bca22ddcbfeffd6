"""Run folders, read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pabench.errors import UsageError
from pabench.load import recover_run
from pabench.load.manifest import Manifest, read_manifest
from pabench.load.records import (
    ADDED_COLUMNS,
    MANIFEST_FILE,
    REQUEST_SCHEMA,
    REQUESTS_FILE,
    TELEMETRY_FILE,
    TELEMETRY_SCHEMA,
)

SET_ASIDE = "set-aside"  # folder of the pairs that a gate does not judge: their runs are no evidence


@dataclass(frozen=True)
class Run:
    """One run. `requests` has the columns of REQUEST_SCHEMA, `telemetry` those of TELEMETRY_SCHEMA; None is NaN."""

    path: Path
    manifest: Manifest
    requests: pd.DataFrame
    telemetry: pd.DataFrame


def load_run(folder: Path) -> Run:
    """Read a run folder; one whose client was killed is recovered first. Raises UsageError when it is none."""
    manifest = recover_run(folder) if read_manifest(folder).status == "running" else read_manifest(folder)
    requests = _read_table(folder / REQUESTS_FILE, REQUEST_SCHEMA)
    _refuse_torn(folder / REQUESTS_FILE, requests)
    return Run(
        path=folder,
        manifest=manifest,
        requests=requests,
        telemetry=_read_table(folder / TELEMETRY_FILE, TELEMETRY_SCHEMA),
    )


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder` and below, itself included, sorted."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: expected one that holds runs")
    return sorted(path.parent for path in folder.rglob(MANIFEST_FILE))


def _read_table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: the run folder is incomplete, run it again") from None
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    for column in schema:
        if column.name in ADDED_COLUMNS and column.name not in table.schema.names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    if sorted(table.schema.names) != sorted(schema.names):
        raise UsageError(f"{path} has the columns {table.schema.names}, expected {schema.names}")
    try:
        table = table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise UsageError(f"{path} holds what is no table of ours: {error}") from None
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _refuse_torn(path: Path, requests: pd.DataFrame) -> None:
    """Raise UsageError where tokens lack a time, or one of several samples' tokens the sample that it is of."""
    counts = {name: [-1 if row is None else len(row) for row in requests[name]]
              for name in ("token_times_s", "token_choices", "token_ids")}
    for place, (times, choices, ids, n) in enumerate(zip(*counts.values(), requests["n"], strict=True)):
        if times < 0 or ids not in (0, times) or (n != 1 and choices != times):
            raise UsageError(f"{path} is damaged: row {place} has {times} times of tokens, {choices} samples and {ids} "
                             "ids of them (-1: no list)")
