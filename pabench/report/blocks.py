"""Which block trace belongs to a run."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from pabench.errors import UsageError
from pabench.load.manifest import Manifest
from pabench.telemetry.block_trace import TRACE_SUFFIX, BlockTrace, TraceHeader, read_block_trace, read_header


class BlockTraces:
    """Finds traces beside runs, and reads each file once. What cannot be read is added to `problems`, once."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._headers: dict[Path, TraceHeader | None] = {}
        self._traces: dict[Path, BlockTrace | None] = {}

    def of(self, folder: Path, top: Path, manifest: Manifest) -> BlockTrace | None:
        """The trace in the nearest folder from the run's own up to `top` that was recorded while the run went on.

        It must tell the run's own cache, block for block; of several the last that was begun.
        """
        zero = run_zero(manifest)
        end = zero + timedelta(seconds=manifest.duration_s or 0.0)
        for place in (folder, *folder.parents):
            begun = []
            for path in sorted(place.glob(f"*{TRACE_SUFFIX}")):
                header = self._header(path)
                if header is not None and header.started_at < end and _same_cache(header, manifest):
                    begun.append((header.started_at, path))
            if begun:
                trace = self._trace(max(begun)[1])
                if trace is not None and trace.header.started_at + timedelta(seconds=trace.end_s) > zero:
                    return trace
            if place == top:
                break
        return None

    def _header(self, path: Path) -> TraceHeader | None:
        if path not in self._headers:
            try:
                self._headers[path] = read_header(path)
            except UsageError as error:
                self._headers[path] = None
                self._tell(path, error)
        return self._headers[path]

    def _trace(self, path: Path) -> BlockTrace | None:
        if path not in self._traces:
            try:
                self._traces[path] = read_block_trace(path)
            except UsageError as error:
                self._traces[path] = None
                self._tell(path, error)
        return self._traces[path]

    def _tell(self, path: Path, error: UsageError) -> None:
        self._problems.append(str(error).replace(str(path), f"{path.parent.name}/{path.name}"))


def run_zero(manifest: Manifest) -> datetime:
    """When second 0 of a run's records was, UTC; when the run was begun, where it does not tell."""
    return datetime.fromisoformat(manifest.zero_at or manifest.started_at)


def _same_cache(header: TraceHeader, manifest: Manifest) -> bool:
    kv = manifest.engine.kv
    return kv is not None and (kv.num_blocks, kv.block_size, kv.kv_mode) == (
        header.num_blocks, header.block_size, header.kv)
