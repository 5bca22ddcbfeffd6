"""case-<id>.json: all that is needed to ask a failed case again, by pabench or by hand.

It holds what the case was drawn by (http: profile, seed and the engine's geometry; alloc: the shrunk trace itself), so
that `pabench replay` asks the same again, and all that was asked and answered, so that anyone can check it without.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pabench.conformance.results import SPEC_VERSION
from pabench.errors import UsageError

_KIND = "pabench case"


@dataclass(frozen=True, slots=True)
class Case:
    """What `replay` reads of a case file."""

    requirement: str
    case: str
    profile: str
    seed: int
    drawn: Mapping[str, Any]  # by what, beside the seed: see targets.Subject


def write_case(
    folder: Path, case: Case, *, impl: str, text: str, evidence: Mapping[str, Any], circumstances: Mapping[str, Any]
) -> str:
    """Write the case file of a failure; its name. The name is made of nothing that the engine says."""
    identity = json.dumps([SPEC_VERSION, asdict(case)], sort_keys=True)
    name = f"case-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.json"
    document = {
        "kind": _KIND, "spec_version": SPEC_VERSION, **asdict(case), "impl": impl, "engine": dict(circumstances),
        "failure": text, **evidence,
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.tmp"
    temporary.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8", errors="replace")
    temporary.replace(folder / name)
    return name


def load_case(path: Path) -> Case:
    """Read a case file. Raises UsageError when it is none, or of another version of the specification."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the case in {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise UsageError(f"{path} is no case file: expected case-….json from the folder of a `pabench conform` run")
    if document.get("spec_version") != SPEC_VERSION:
        raise UsageError(f"{path} is of spec version {document.get('spec_version')!r}, this pabench has {SPEC_VERSION}")
    try:
        return Case(document["requirement"], document["case"], document["profile"], document["seed"],
                    dict(document["drawn"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a whole case file: {error}") from error


def from_here(path: Path) -> Path:
    """`path` as somebody would type it who works here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def replay_command(file: Path, locator: str, patience: float, test: Path | None) -> str:
    """What asks the case in `file` again of what `locator` names; `test`: whose it is, where it is none that ships."""
    case = shlex.quote(str(from_here(file)))
    if test is None:
        return f"pabench replay {case} {locator}" + (f" --patience {patience:g}" if patience != 1 else "")
    options = shlex.join(word.replace("--", "--pabench-", 1) if place % 2 == 0 else word
                         for place, word in enumerate(shlex.split(locator)))
    more = f" --pabench-patience {patience:g}" if patience != 1 else ""
    return f"pytest {shlex.quote(str(from_here(test)))} {options}{more} --pabench-replay {case}"
