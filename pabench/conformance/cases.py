"""case-<id>.json: all that is needed to send a failed case again, by pabench or by hand with curl.

It holds what the sizes were chosen by (profile, seed, block size, capacity, context), so that `pabench replay`
draws the same prompts again, and every request with its answer, so that anyone can check them without pabench.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pabench.conformance.exchange import Exchange, Geometry
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
    geometry: Geometry


def write_case(
    folder: Path, case: Case, *, impl: str, text: str, exchanges: Sequence[Exchange], circumstances: Mapping[str, Any]
) -> str:
    """Write the case file of a failure; its name. The name is made of nothing that the engine says."""
    identity = json.dumps([SPEC_VERSION, asdict(case)], sort_keys=True)
    name = f"case-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.json"
    document = {
        "kind": _KIND, "spec_version": SPEC_VERSION, **asdict(case), "impl": impl, "engine": dict(circumstances),
        "failure": text, "exchanges": [_exchange(exchange) for exchange in exchanges],
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
                    Geometry(**document["geometry"]))
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a whole case file: {error}") from error


def _exchange(exchange: Exchange) -> dict[str, Any]:
    completion = exchange.completion
    return {
        "name": exchange.name,
        "request": asdict(exchange.request),
        "sent_s": exchange.sent_s,
        "end_s": exchange.end_s,
        "error": None if exchange.error is None else f"{type(exchange.error).__name__}: {exchange.error}",
        "answer": None if completion is None else {
            "status": completion.status,
            "error": completion.error,
            "truncated": completion.truncated,
            "usage": None if completion.usage is None else asdict(completion.usage),
            "choices": [
                {"index": choice.index, "text": choice.text, "token_ids": choice.token_ids,
                 "finish_reason": choice.finish_reason}
                for choice in completion.choices
            ],
        },
    }
