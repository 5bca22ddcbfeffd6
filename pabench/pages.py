"""Pages of the docs that a program makes: their tables, and the command that writes one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Lines of a Markdown table; a cell may hold a bar."""
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def write_page(module: str, make: Callable[[], str], default: Path, argv: list[str]) -> int:
    """The command `python -m MODULE [FILE]`: write the page that `make` makes; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Write the page.")
    parser.add_argument("file", nargs="?", type=Path, default=default)
    path = parser.parse_args(argv).file
    path.write_text(make(), encoding="utf-8")
    print(path)
    return 0
