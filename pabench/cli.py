"""The command `pabench`: one function a command, each thin over the part that does the work.

Exit codes: 0 done and conforming, 1 done and not conforming (or a regression), 2 could not run, 3 cannot tell (the
gate), 130 interrupted.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from pabench import __version__
from pabench.commands import compare, conformance, engines, loads, results, searches
from pabench.commands.options import interrupted_text, results_in
from pabench.engines.cleaning import WHOLE, clean
from pabench.errors import EXIT_COULD_NOT_RUN, EXIT_INTERRUPTED, PabenchError
from pabench.terminal.steadfast import make_output_steadfast

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class _Commands(typer.core.TyperGroup):
    """Every expected failure of a command is one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # typer carries its own copy of click, so its types have no public name
        """Run the command that was asked for."""
        results_in(None)
        try:
            return super().invoke(ctx)
        except PabenchError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(interrupted_text(), EXIT_INTERRUPTED)
        except OSError as error:
            what = "cannot write" if error.errno in _WRITING else "cannot use"
            _fail(f"{what} {error.filename or 'a file'}: {error.strerror or error}", EXIT_COULD_NOT_RUN)


def _fail(text: str, code: int) -> NoReturn:
    print(f"pabench: {clean(text, WHOLE)}", file=sys.stderr)
    raise SystemExit(code)


app = typer.Typer(
    cls=_Commands,
    help="Benchmark and conformance test suite for paged-attention LLM engines.",
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
)
for _part in (engines, conformance, loads, searches, compare, results):
    app.add_typer(_part.app)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _end_as_on_ctrl_c)
    make_output_steadfast()
    try:
        app(prog_name="pabench")
    except Exception:  # a fault of ours: Python's own exit code, 1, would be a verdict
        traceback.print_exc()
        raise SystemExit(EXIT_COULD_NOT_RUN) from None


def _end_as_on_ctrl_c(*_: object) -> None:
    """A cancelled CI job sends TERM: engines of ours are to be stopped then, and records written."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pabench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass
