"""What the report takes from the files of the gate and of the claims; whatever else they hold is not looked at."""

from __future__ import annotations

from pydantic import BaseModel


class GateMetric(BaseModel):
    """One figure that a gate judged. A number is null where it has no end."""

    load: str
    metric: str
    outcome: str
    baseline: float | None
    candidate: float | None
    ratio: float | None
    low: float | None
    high: float | None
    count: int


class GateFile(BaseModel):
    """A gate.json. All texts may be hostile."""

    outcome: str
    advice: str = ""
    metrics: list[GateMetric] = []
    failures: list[str] = []
    notes: list[str] = []


class ClaimRow(BaseModel):
    """One claim and what became of it."""

    claim: str
    source: str
    published: str
    ours: str
    verdict: str
    how: str
    why: str


class ClaimsFile(BaseModel):
    """A claims.json. All texts may be hostile."""

    claims: list[ClaimRow]
