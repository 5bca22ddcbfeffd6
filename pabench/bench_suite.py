"""What `pabench bench` is told: engines, a workload at several loads, and what they all serve. See `pabench.bench`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pabench.engines import dialect
from pabench.errors import UsageError
from pabench.files import read_model
from pabench.load import Workload, load_workload
from pabench.load.workload import MAX_SEED, Bounds
from pabench.probe import preset
from pabench.resources import data_dir

PROBE_FOLDER = "probe"
MODEL_FOLDER = "model"
CONFORMANCE_FOLDER = "conformance"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Profile = Literal["none", "smoke", "ci", "full"]


class EnginePlan(_Strict):
    """One engine: `command` starts it ({python}, {model}, {port} and {block_trace} are filled in), or it runs at `url`.

    {block_trace} is a new file beside the engine's log, for an engine that can record its block ownership. `profile`:
    the suite's when None.
    """

    label: str = Field(min_length=1)
    dialect: str | None = None
    command: tuple[str, ...] = ()
    url: str = "http://127.0.0.1:{port}"
    env: dict[str, str] = {}
    ready_timeout_s: float = Field(default=180.0, gt=0)
    profile: Profile | None = None

    @model_validator(mode="after")
    def _reachable(self) -> EnginePlan:
        if not self.command and "{port}" in self.url:
            raise ValueError("give a command that starts the engine, or the url where it runs")
        if self.dialect is not None:
            dialect(self.dialect)
        return self


class LoadPlan(_Strict):
    """One load of a sweep: overrides of the workload's own fields."""

    users: int | None = Field(default=None, ge=1)
    rate_per_s: float | None = Field(default=None, gt=0)
    num_requests: int | None = Field(default=None, ge=1)
    duration_s: float | None = Field(default=None, gt=0)


class BenchSuite(_Strict):
    """A comparison: see the module. `profile` "none" leaves conformance out. `slo`: in place of the workload's.

    Load k of each engine is drawn from `seed` + k.
    `calibrate`: after each run, the client's own error is measured.
    `turns`: all engines are there for the loads, each of which is put on one after another: a machine that becomes
    slower meets all alike. For engines that leave the machine alone when nothing is asked of them.
    `model_command` writes another model than the probe into the folder {model}. Its answers cannot be verified.
    """

    description: str
    probe: str = "tiny"
    probe_dtype: str = "float32"
    model_command: tuple[str, ...] = ()
    profile: Profile = "smoke"
    workload: str
    slo: Bounds | None = None
    calibrate: bool = False
    turns: bool = False
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)  # None: the workload's own
    loads: tuple[LoadPlan, ...] = Field(alias="load", min_length=1)
    engines: tuple[EnginePlan, ...] = Field(alias="engine", min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> BenchSuite:
        if preset(self.probe).window is not None and self.workloads()[0].prompt != "text":
            raise ValueError(f"probe {self.probe!r} sees a window of its prompts alone, and workload {self.workload!r} "
                             "reads them whole: name another preset")
        profiles = {self.profile_of(engine) for engine in self.engines}
        if self.model_command and (profiles != {"none"} or self.workloads()[0].prompt != "text"):
            raise ValueError('with a model_command there is no probe: set profile = "none" and a workload whose prompt '
                             f'is "text" (got {", ".join(map(repr, sorted(profiles)))} and {self.workload!r})')
        for what, names, taken in (
            ("engine labels", [folder_name(engine.label) for engine in self.engines], {PROBE_FOLDER, MODEL_FOLDER}),
            ("loads", [folder_name(workload.load_text) for workload in self.workloads()], {CONFORMANCE_FOLDER}),
        ):
            if len(set(names) | taken) != len(names) + len(taken):
                raise ValueError(f"{what} must differ from each other and from {taken}, as folder names: {names}")
        return self

    def workloads(self) -> list[Workload]:
        """The workload at each load."""
        slo = None if self.slo is None else self.slo.model_dump(exclude_none=True)
        return [load_workload(self.workload, **load.model_dump(), slo=slo) for load in self.loads]

    def profile_of(self, engine: EnginePlan) -> Profile:
        """How much conformance asks of it."""
        return engine.profile or self.profile

    @property
    def first_seed(self) -> int:
        """Of conformance and the first load."""
        return self.workloads()[0].seed if self.seed is None else self.seed


def known_suites() -> dict[str, Path]:
    """Name -> file of the bench suites that ship with pabench."""
    return {path.stem: path for path in sorted((data_dir("suites") / "bench").glob("*.toml"))}


def load_suite(name_or_path: str) -> BenchSuite:
    """A bench suite by name or file. Raises UsageError of one line."""
    known = known_suites()
    path = known.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise UsageError(f"unknown bench suite {name_or_path!r}: neither a file nor one of {', '.join(known)}")
    return read_model(path, BenchSuite, "bench suite")


def folder_name(label: str) -> str:
    """A label as a folder name: nothing but letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "engine"
