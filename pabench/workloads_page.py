"""docs/workloads.md, made from the workload files that ship with pabench.

    python -m pabench.workloads_page              # write docs/workloads.md
    python -m pabench.workloads_page other.md     # or another file

A test holds the committed page to what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pabench.load import Workload, known_workloads, load_workload
from pabench.pages import table, write_page

PAGE = Path("docs/workloads.md")
_HEAD = """# Workloads

What ships with pabench, by the name that `--workload` takes; a TOML file of your own does as well, and
[measurement.md](measurement.md#a-workload-of-your-own) has its fields. `--users` and `--rate` put another load in place
of the file's. `python -m pabench.workloads_page` makes this page of `workloads/*.toml`, each of which says where its
lengths come from.

Prompts: *probe* is rings of the [KV probe](kv-probe.md), *fork* its forks, for several samples or beams: both need an
engine that serves the probe, and every answer is verified. *text* is random words, for any model; nothing is verified.
"""


def workloads_page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *table(("workload", "prompts", "load", "ends after", "what"), _rows())]) + "\n"


def _rows() -> Iterator[tuple[str, ...]]:
    for name, path in known_workloads().items():
        workload = load_workload(name)
        yield (f"[{name}](../workloads/{path.name})", workload.prompt, workload.load_text, _end(workload),
               workload.description)


def _end(workload: Workload) -> str:
    parts = [] if workload.num_requests is None else [f"{workload.num_requests} requests"]
    return ", ".join(parts + ([] if workload.duration_s is None else [f"{workload.duration_s:g} s"]))


def main(argv: list[str]) -> int:
    """Write the page."""
    return write_page("pabench.workloads_page", workloads_page, PAGE, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
