"""docs/claims.md has the row of every claim."""

from __future__ import annotations

import re
from pathlib import Path

from pabench.claims import load_claims

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")


def test_each_claim_has_its_row() -> None:
    """Behind the head. If not: `pabench claims --traces FOLDER --markdown docs/claims.md`, on an idle machine."""
    assert re.findall(r"^\| ([a-z0-9-]+) \|", PAGE, re.M)[2:] == [claim.id for claim in load_claims()]
