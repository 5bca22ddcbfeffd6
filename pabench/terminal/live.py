"""Live views, on stderr, so that stdout stays a script's. Engine-supplied text is cleaned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pabench.engines.cleaning import WHOLE, clean
from pabench.load import Progress as ProgressCallback
from pabench.load import ProgressState, Workload


def console(*, quiet: bool = False) -> Console:
    """Where live views go: stderr, so that stdout stays a script's."""
    return Console(stderr=True, quiet=quiet, highlight=False)


@contextmanager
def live_load(workload: Workload, label: str, *, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A live line for one load on stderr; the context is the callback that moves it."""
    out = console(quiet=quiet)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"), console=out, disable=quiet,
    )
    name = escape(f"{clean(label)}, {workload.load_text}")
    with bar:
        task = bar.add_task(name, total=workload.num_requests, now="warming up")

        def show(state: ProgressState) -> None:
            bar.update(task, completed=state.done, total=state.total, now=_now(state, workload.rate_per_s))

        yield show


def _now(state: ProgressState, target_per_s: float | None) -> str:
    if state.settled:
        return f"reading answers, {state.settled / state.total:.0%}"
    elapsed_s = max(state.elapsed_s, 1e-3)
    parts = [f"{state.in_flight} in flight", f"{state.output_tokens / elapsed_s:,.0f} tok/s"]
    if target_per_s is not None:
        parts.insert(0, f"{(state.done + state.in_flight) / elapsed_s:.3g} of {target_per_s:.3g} req/s")
    if state.ttft_s is not None and state.itl_s is not None:
        parts.append(f"TTFT {state.ttft_s * 1e3:.0f} ms  ITL {state.itl_s * 1e3:.1f} ms")
    if state.running is not None:
        parts.append(f"running {state.running:.0f}")
    if state.kv_usage is not None:
        parts.append(f"KV {state.kv_usage:.0%}")
    if state.errors:
        parts.append(f"[red]{state.errors} errors[/red]")
    return "  ".join(parts)


class TerminalNarrator:
    """`bench.Narrator` on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = console(quiet=quiet)

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        self._console.print(f"[bold]»[/bold] {escape(clean(text, WHOLE))}")

    def load(self, workload: Workload, label: str) -> AbstractContextManager[ProgressCallback]:
        """Show one load while it runs."""
        return live_load(workload, label, quiet=self.quiet)
