"""Live views, on stderr, so that stdout stays a script's. Engine-supplied text is cleaned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from pabench.engines.cleaning import WHOLE, clean
from pabench.load import Progress as ProgressCallback
from pabench.load import ProgressState, Workload
from pabench.terminal.run_log import run_log, state_text

_ROOM_FOR_A_BAR = 110  # columns


def console(*, quiet: bool = False) -> Console:
    """Where live views go: stderr, so that stdout stays a script's."""
    return Console(stderr=True, quiet=quiet, highlight=False)


@contextmanager
def live_load(
    workload: Workload, label: str, folder: Path, *, quiet: bool = False, api_key: str | None = None
) -> Iterator[ProgressCallback]:
    """A live line for one load on stderr, and `run.log` in its folder; the context is the callback that moves them."""
    out = console(quiet=quiet)
    drawn = [BarColumn(bar_width=24)] if out.width >= _ROOM_FOR_A_BAR else []  # the count says it too
    bar = Progress(
        TextColumn("{task.description}"), *drawn, MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[now]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=out, disable=quiet, expand=True,  # on a narrow terminal the figures give way, and not the count
    )
    name = escape(f"{clean(label)}, {workload.load_text}")
    target_per_s = workload.rate_per_s if workload.session is None else None  # of sessions nobody counts the starts
    with bar:
        task = bar.add_task(name, total=workload.num_requests, now="warming up")

        def show(state: ProgressState) -> None:
            now = state_text(state, target_per_s)
            bar.update(task, completed=state.done, total=state.total, now=f"[red]{now}[/red]" if state.errors else now)

        head = f"{label}, {workload.name}, {workload.load_text}"
        with run_log(folder, head, show, target_per_s, secret=api_key) as logged:
            yield logged


class TerminalNarrator:
    """`bench.Narrator` on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = console(quiet=quiet)

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        self._console.print(f"[bold]»[/bold] {escape(clean(text, WHOLE))}")

    def load(self, workload: Workload, label: str, folder: Path) -> AbstractContextManager[ProgressCallback]:
        """Show one load while it runs, and log it."""
        return live_load(workload, label, folder, quiet=self.quiet)
