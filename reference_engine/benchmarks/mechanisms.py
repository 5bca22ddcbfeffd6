"""What each mechanism buys: the engine with its switch off and on, in turns, in one process, without HTTP.

A small random Llama (5.6 M parameters, float32), or a KV probe where answers must repeat or be checked. Each figure is
the median of the repetitions, with its extremes; counts do not vary. `--json` writes all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pabench.errors import EXIT_INTERRUPTED, EXIT_OK, PabenchError, UsageError
from reference_engine.benchmarks import sharing, steering
from reference_engine.benchmarks.measurement import Measurement
from reference_engine.benchmarks.serving import Bench
from reference_engine.benchmarks.timing import Spread, in_turns, machine, machine_text, output

MEASUREMENTS: tuple[Measurement, ...] = (*sharing.ALL, *steering.ALL)


def measure(one: Measurement, bench: Bench, repeats: int) -> dict[str, Any]:
    """Every figure of every arm in every repetition."""
    return {"mechanism": one.mechanism, "switch": one.switch, "setting": one.setting,
            "arms": in_turns(one.arms(bench), repeats)}


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(figure, what each arm came to) of one mechanism."""
    arms: dict[str, dict[str, list[float]]] = found["arms"]
    told = []
    for figure in next(iter(arms.values())):
        first = Spread.of(next(iter(arms.values()))[figure]).median
        parts = []
        for at, (name, values) in enumerate(arms.items()):
            spread = Spread.of(values[figure])
            times = f", ×{spread.median / first:.2f}" if at and first and spread.median else ""
            parts.append(f"{name}: {spread.text(_form(spread.median))}{times}")
        told.append((figure, "\n".join(parts)))
    return told


def _form(value: float) -> str:
    return ",.0f" if abs(value) >= 100 or value == int(value) else ",.3g" if abs(value) < 1 else ",.1f"


def show(out: Console, results: list[dict[str, Any]]) -> None:
    """The table, one section a mechanism."""
    table = Table(title="median (lowest–highest), times the first arm's", title_justify="left", show_lines=True)
    for column in ("mechanism and switch", "served", "figure", "result"):
        table.add_column(column, overflow="fold")
    for found in results:
        head = (f"{found['mechanism']}\n{found['switch']}", found["setting"])
        for figure, told in rows(found):
            table.add_row(*head, figure, told)
            head = ("", "")
    out.print(table, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. What was measured before an interrupt is shown and written."""
    p = argparse.ArgumentParser(prog="python -m reference_engine.benchmarks.mechanisms", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", action="append", metavar="TEXT", help="only mechanisms whose name holds it (repeatable)")
    p.add_argument("--repeats", type=int, default=3, help="repetitions of each arm (default 3)")
    p.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of requests (default 1)")
    p.add_argument("--json", type=Path, help="file to write all figures to")
    args = p.parse_args(argv)
    chosen = [one for one in MEASUREMENTS
              if not args.only or any(text.lower() in one.mechanism.lower() for text in args.only)]
    results: list[dict[str, Any]] = []
    code = EXIT_OK
    try:
        if not chosen or args.repeats < 1 or args.scale <= 0:
            raise UsageError("nothing to measure: --only must name one of "
                             f"{', '.join(one.mechanism for one in MEASUREMENTS)}; --repeats and --scale be above 0")
        with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bar:
            bench = Bench(Path(folder), args.scale)
            for one in bar.track(chosen, description="mechanisms"):
                results.append(measure(one, bench, args.repeats))
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    out = output()
    out.print(machine_text())
    show(out, results)
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(), "mechanisms": results}, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
