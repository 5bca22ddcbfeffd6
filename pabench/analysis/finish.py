"""The end of a run: judged, and the verdict kept in its manifest."""

from __future__ import annotations

from pathlib import Path

from pabench.analysis.runs import Run, load_run
from pabench.analysis.summarise import summarise
from pabench.analysis.summary import RunSummary
from pabench.load.manifest import RunValidity


def finish_run(folder: Path) -> tuple[Run, RunSummary]:
    """Read a run that has ended, summarise it, and write the verdict on it into its manifest.

    Whoever reads the run judges it again, by the rules that it knows then; the manifest's verdict is for those who
    read the file alone. Raises UsageError when it is no run, RecordsUnwritable.
    """
    run = load_run(folder)
    summary = summarise(run)
    run.manifest.validity = RunValidity(valid=summary.validity.valid, reasons=list(summary.validity.reasons))
    run.manifest.write(folder)
    return run, summary
