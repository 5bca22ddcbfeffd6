"""docs/workloads.md says what ships."""

from __future__ import annotations

from pathlib import Path

from pabench.load import known_workloads
from pabench.workloads_page import PAGE, main, workloads_page

ROOT = Path(__file__).resolve().parents[2]


def test_committed_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == workloads_page(), "run `python -m pabench.workloads_page`"


def test_page_has_every_workload_with_its_load(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    assert main([str(file)]) == 0
    rows = [line for line in file.read_text().splitlines() if line.startswith("| [")]
    assert len(rows) == len(known_workloads())
    (smoke,) = [row for row in rows if row.startswith("| [smoke]")]
    assert "| probe | 4 users | 12 requests | A dozen short verified requests. |" in smoke
