"""What was found beside the runs: a gate's decisions, and published claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pabench.report.sources import Told
from pabench.report.tables import Cell, Column, Table, table, words
from pabench.report.text import number
from pabench.telemetry.vocabulary import UNKNOWN

_STATES = {"PASS": "yes", "REGRESSION": "no"}
_TONES = {"not worse": "good", "worse": "bad", "watched": "muted", "reproduced": "good", "ERROR": "bad",
          "not shown": "muted"}
_GATE_COLUMNS = (
    Column("load", "Load", numeric=False), Column("metric", "Figure", numeric=False), Column("baseline", "Baseline"),
    Column("candidate", "Candidate"), Column("ratio", "Ratio"), Column("ratio_low", "Low", "95 %"),
    Column("ratio_high", "High", "95 %"), Column("pairs", "Pairs"), Column("verdict", "Verdict", numeric=False),
)
_CLAIM_COLUMNS = (
    Column("claim", "Claim", numeric=False), Column("source", "Source", numeric=False),
    Column("published", "Published", numeric=False), Column("ours", "Ours", numeric=False),
    Column("verdict", "Verdict", numeric=False), Column("how", "How", numeric=False),
    Column("why", "Why", numeric=False),
)


@dataclass(frozen=True, slots=True)
class GateView:
    """One decision. `state`: yes, no or open; texts may be hostile."""

    place: str
    outcome: str
    state: str
    advice: str
    remarks: tuple[str, ...]
    table: Table | None


def gate_view(told: Told, number_of_gate: int) -> GateView:
    """The decision in a gate.json."""
    found = told.found
    outcome = found["outcome"]
    rows = [_gate_row(metric) for metric in found["metrics"]]
    caption = f"What the gate of {told.place} judged"
    made = table(f"gate-{number_of_gate}", caption, _GATE_COLUMNS, rows) if rows else None
    remarks = (*found["failures"], *found["notes"])
    return GateView(told.place, outcome, _STATES.get(outcome, "open"), found["advice"], remarks, made)


def claims_table(told: Sequence[Told]) -> Table | None:
    """All claims of all claims.json; None where there is none."""
    rows = [
        (words(row["claim"]), words(row["source"]), words(row["published"]), words(row["ours"]),
         words(row["verdict"], _TONES.get(row["verdict"], "")), words(row["how"]), words(row["why"]))
        for each in told for row in each.found["claims"]
    ]
    return table("claims-table", "Published figures and ours", _CLAIM_COLUMNS, rows) if rows else None


def _gate_row(metric: dict[str, Any]) -> tuple[Cell, ...]:
    figures = [metric[name] for name in ("baseline", "candidate", "ratio", "low", "high")]
    return (words(metric["load"]), words(metric["metric"]),
            *(Cell(UNKNOWN if value is None else number(value, 4), value) for value in figures),
            Cell(str(metric["count"]), metric["count"]),
            words(metric["outcome"], _TONES.get(metric["outcome"], "")))
