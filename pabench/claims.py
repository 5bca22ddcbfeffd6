"""`pabench claims`: published figures of paged attention, each beside what this machine makes of it.

suites/claims/claims.toml has the rows: what is claimed, where, the figure, and the function that shows it, which lives
in a module beside it. A row is *reproduced*, it *differs* (and the row says why), or it is *not shown* here, and why.
None is left out: a row whose function fails is an error in the table.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pabench.engines.cleaning import markdown
from pabench.errors import UsageError
from pabench.files import read_model
from pabench.load.manifest import describe_host
from pabench.load.records import write_atomic
from pabench.resources import data_dir

REPRODUCED, DIFFERS, NOT_SHOWN, ERROR = "reproduced", "differs", "not shown", "ERROR"


class Claim(BaseModel):
    """One row. `how`: exact (sums and our allocators), arithmetic (a closed formula over data sheets), simulated (the
    engine's scheduler under a virtual clock), measured (on this machine, now) or none (what it would take is said in
    `why`). `show` is module:function.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    claim: str
    source: str
    published: str
    how: Literal["exact", "arithmetic", "simulated", "measured", "none"]
    show: str = ""
    why: str = ""
    trace: str = ""     # file that it needs, as its publisher names it


class _Claims(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: tuple[Claim, ...] = Field(alias="claim", min_length=1)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a claim came to. `holds` None: it could not be shown, and `why` says what is missing."""

    ours: str
    holds: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a claim's function may use. `scale` multiplies the sizes of simulations and measurements."""

    folder: Path                    # of models and the like, deleted at the end
    traces: Path | None = None      # where public traces lie
    scale: float = 1.0
    seed: int = 0
    memory: dict[str, object] = field(default_factory=dict)  # what one row made and another uses again

    def count(self, number: int) -> int:
        """So many requests, scaled; at least 8."""
        return max(8, round(number * self.scale))


@dataclass(frozen=True, slots=True)
class Result:
    """A claim and its verdict."""

    claim: Claim
    verdict: str
    ours: str
    why: str


def load_claims(ids: Sequence[str] = ()) -> list[Claim]:
    """All claims, or those of `ids`. Raises UsageError for an unknown one."""
    claims = read_model(data_dir("suites") / "claims" / "claims.toml", _Claims, "claims").claims
    known = {claim.id: claim for claim in claims}
    if unknown := [name for name in ids if name not in known]:
        raise UsageError(f"unknown claim {', '.join(unknown)}: expected some of {', '.join(known)}")
    return [known[name] for name in ids] or list(claims)


def show_claims(
    claims: Sequence[Claim], results: list[Result], *, traces: Path | None = None, scale: float = 1.0, seed: int = 0,
    told: Callable[[int, int, Result], None] = lambda place, count, result: None,
) -> None:
    """Show each, adding to `results`, so that an interrupt loses none; `told` hears of each: place, count, result."""
    if not 0 < scale < math.inf:
        raise UsageError(f"the scale is {scale:g}, expected a number above 0")
    if traces is not None and not traces.is_dir():
        raise UsageError(f"{traces} is no folder: expected one with traces as their publishers name them")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), traces, scale, seed)
        for place, claim in enumerate(claims, start=1):
            results.append(_show(claim, bench))
            told(place, len(claims), results[-1])


def _show(claim: Claim, bench: Bench) -> Result:
    if not claim.show:
        return Result(claim, NOT_SHOWN, "–", claim.why)
    if claim.trace and (bench.traces is None or not (bench.traces / claim.trace).is_file()):
        return Result(claim, NOT_SHOWN, "–", f"needs the trace {claim.trace}: give its folder with --traces")
    name, _, function = claim.show.partition(":")
    try:
        shown = getattr(claims_module(name), function)(bench)
    except Exception as error:  # whatever it is: the rows before and behind it are not lost, and this one says so
        return Result(claim, ERROR, "–", f"{type(error).__name__}: {error}")
    verdict = NOT_SHOWN if shown.holds is None else REPRODUCED if shown.holds else DIFFERS
    return Result(claim, verdict, shown.ours, shown.why or claim.why)


@cache
def claims_module(name: str) -> ModuleType:
    """suites/claims/NAME.py, for those beside it too: the suites are data, no package, so it is loaded by its path."""
    path = data_dir("suites") / "claims" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"pabench_claims_{name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{path} is missing: the installation is not whole")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def claims_markdown(results: Sequence[Result], command: str) -> str:
    """The table for docs."""
    host = describe_host()
    lines = [
        "# Published claims", "",
        f"Written by `{command}` on {host.cpu}, {host.cores} cores. *Exact* is sums and our allocators, "
        "*arithmetic* a closed formula over data sheets, *simulated* the reference engine's scheduler under a virtual "
        "clock, *measured* this machine's CPU: no GPU was used. Where a GPU's figure is reproduced, it is by a ratio "
        "on a CPU, a simulation or arithmetic. The source *notes* is no publication: worked examples that this project "
        "started from.", "",
        *_counted(results), "",
        "| id | claim | source | published | ours | verdict | how, and why |", f"|{' --- |' * 7}",
    ]
    for one in results:
        how = "" if one.claim.how == "none" else one.claim.how
        cells = (one.claim.id, one.claim.claim, one.claim.source, one.claim.published, one.ours, one.verdict,
                 ". ".join(filter(None, (how, one.why))))
        lines.append(f"| {' | '.join(map(markdown, cells))} |")
    return "\n".join(lines) + "\n"


def _counted(results: Sequence[Result]) -> Iterator[str]:
    counts = [f"{sum(one.verdict == verdict for one in results)} {verdict}"
              for verdict in (REPRODUCED, DIFFERS, NOT_SHOWN, ERROR)]
    yield f"{len(results)} claims: {', '.join(counts)}."


def write_claims(results: Sequence[Result], path: Path) -> None:
    """Write them as JSON, for the report. Raises RecordsUnwritable."""
    told = {"schema_version": 1, "host": describe_host().model_dump(), "claims": [
        {**one.claim.model_dump(), **{k: v for k, v in asdict(one).items() if k != "claim"}} for one in results]}
    write_atomic(path, orjson.dumps(told, option=orjson.OPT_INDENT_2))
