"""Several loads put on one engine in turn: those of a sweep, of a bench, of a search for the capacity.

Load k is drawn from the series' seed + k. With one seed for all, later loads would ask for the prompts of the earlier
ones and find them in the prefix cache.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from pabench.analysis import Run, RunSummary, finish_run
from pabench.calibration import calibrate_run, require_streamed
from pabench.load import Placement, Progress, Workload, run_loop, run_workload
from pabench.load.pool import ONE_PROCESS
from pabench.load.runner import Examined

Watch = Callable[[Workload, str, Path], AbstractContextManager[Progress]]  # load, label, folder -> while it runs


@dataclass(frozen=True, slots=True)
class Series:
    """What all loads have in common. `watch` shows each while it runs."""

    examination: Examined
    url: str
    label: str
    seed: int
    watch: Watch
    api_key: str | None = field(default=None, repr=False)
    placement: Placement = ONE_PROCESS
    calibrate: bool = False  # after each run, the client's own error

    def require(self, workload: Workload) -> None:
        """Raise UsageError for a load that could not be calibrated, where each is to be."""
        if self.calibrate:
            require_streamed(workload, self.examination.facts)

    def run(self, number: int, workload: Workload, folder: Path) -> tuple[Run, RunSummary]:
        """Carry load `number` into the new `folder`, and judge it. Raises UsageError for what the engine cannot do."""
        with self.watch(workload, self.label, folder) as progress:
            manifest = run_loop(run_workload(
                self.examination, workload, folder, url=self.url, label=self.label, seed=self.seed + number,
                progress=progress, api_key=self.api_key, placement=self.placement))
        if self.calibrate and manifest.failure is None and manifest.outcomes["ok"] + manifest.outcomes["wrong"]:
            calibrate_run(folder, self.placement)
        return finish_run(folder)
