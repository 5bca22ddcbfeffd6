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
    return Run(
        path=folder,
        manifest=manifest,
        requests=_read_table(folder / REQUESTS_FILE, REQUEST_SCHEMA),
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
    frame: pd.DataFrame = table.select(schema.names).to_pandas()
    return frame
