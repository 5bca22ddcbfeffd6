"""The manifest of a run: what was run, against what, with what, on which machine, and how it ended."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import pabench
from pabench.engines.base import EngineFacts
from pabench.engines.cleaning import without_secrets
from pabench.errors import UsageError
from pabench.files import wrong_fields
from pabench.load.records import MANIFEST_FILE, write_atomic
from pabench.load.upgrade import upgrade
from pabench.load.workload import CacheState, Workload

_TOLD_FIELDS = 3  # wrong ones, of a file that may be no manifest at all
_VERSIONS_OF = ("aiohttp", "numpy", "orjson", "pandas", "pyarrow", "pydantic")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Host(_Part):
    """The machine that the client ran on."""

    cpu: str
    cores: int              # that this process may use
    memory_bytes: int | None
    platform: str
    python: str


_ALIKE = 1.1  # pools of one engine


class KVGeometry(_Part):
    """`telemetry.vocabulary.KVFacts` as written. None: the engine does not say."""

    block_size: int | None = None
    num_blocks: int | None = None
    prefix_caching: bool | None = None
    kv_mode: str | None = None

    @property
    def capacity_tokens(self) -> int | None:
        """Slots in the pool; None where unknown."""
        return None if self.block_size is None or self.num_blocks is None else self.block_size * self.num_blocks


class EngineRecord(_Part):
    """`engines.EngineFacts` as written. All texts are engine-supplied: escape before showing."""

    dialect: str
    model: str
    max_context_tokens: int | None
    version: str | None = None
    kv: KVGeometry | None = None
    capabilities: list[str] = Field(default_factory=list)


class ClientHealth(_Part):
    """How well the client itself kept up. Milliseconds; None where the run had nothing to measure."""

    loop_lag_p50_ms: float | None = None   # how much later than asked the event loop came round
    loop_lag_p99_ms: float | None = None
    loop_lag_max_ms: float | None = None
    loop_lag_percentiles_ms: list[float] = Field(default_factory=list)  # 0 to 100, 101 of them, or none
    lateness_p50_ms: float | None = None   # asked - intended
    lateness_p99_ms: float | None = None
    lateness_max_ms: float | None = None
    kernel_stamps: bool = False            # arrivals are the kernel's, not the event loop's
    cpu_share: float | None = None         # of one core, over the run
    failed_scrapes: int = 0
    scrapes: int = 0


class Calibration(_Part):
    """`load.calibrate.ClientError` as written: the client's own error at the run's number of streams and rate."""

    streams: int
    itl_ms: float
    arrival_p50_ms: float
    arrival_p99_ms: float
    gap_p99_ms: float


class CacheCheck(_Part):
    """Whether the prefix cache was in the state that the workload states. `checked`: requests."""

    stated: CacheState
    checked: int
    broken: str | None  # how it was not so
    found: float | None = None  # warm or a share: of the first prompts' tokens in whole blocks, what came from it

    @property
    def text(self) -> str:
        """The stated state in words."""
        return self.stated if isinstance(self.stated, str) else f"filled to {self.stated:.0%}"


class Resumption(_Part):
    """Where a run that was broken off went on: what had no answer then was sent, or sent again. Seconds."""

    at_s: float     # on the run's clock, which stood still meanwhile
    shift_s: float  # by which the arrivals to come were put off
    again_s: float | None = None  # on the clock before: when the first came of those sent again, whose tokens are gone
    died: bool = False  # the engine did: what it broke as it died was sent again (`replan.those_over`)


class RunValidity(_Part):
    """The verdict at the end of the run, by the rules of the pabench that ran it (docs/measurement.md)."""

    valid: bool
    reasons: list[str] = Field(default_factory=list)  # why not


class Manifest(_Part):
    """See the module. `status`: "running" is a run that is going on, or that was killed."""

    schema_version: Literal[3] = 3          # records.SCHEMA_VERSION
    status: Literal["running", "complete", "interrupted", "failed"]
    failure: str | None = None             # why, when status is "failed"; may hold engine-supplied text
    command: list[str]                     # keys and passwords taken out
    started_at: str                        # UTC, ISO 8601
    zero_at: str | None = None             # the same, of the records' zero: planning and warming up come before it
    label: str
    url: str                               # without user, password and query
    workload: Workload
    seed: int
    engine_started_at: str | None = None   # of a gate with turns: UTC, ISO 8601; runs of one start are one sample
    schedule_digest: str = ""              # fingerprint of all requests: equal digests, equal loads
    engine: EngineRecord
    probe_preset: str | None
    host: Host
    versions: dict[str, str]
    git_commit: str | None
    outcomes: dict[str, int] = Field(default_factory=dict)   # of records.OUTCOMES; sums to the scheduled requests
    duration_s: float | None = None        # from the start to the end of the last request
    window_s: tuple[float, float] | None = None  # the steady window, seconds from the start
    workers: int = 1                       # processes that carried the load
    resumed: list[Resumption] = Field(default_factory=list)
    unwatched: list[int] = Field(default_factory=list)  # parts, between resumptions, whose client was killed
    client: ClientHealth = Field(default_factory=ClientHealth)  # with several workers the worst of each figure
    calibration: Calibration | None = None  # None: the client was not calibrated for this run
    cache: CacheCheck | None = None         # None: no state was stated
    validity: RunValidity | None = None     # None: nobody judged it at its end, which its readers do anyway
    notes: list[str] = Field(default_factory=list)  # what a reader must know: clipped lengths, usage that disagrees

    @model_validator(mode="after")
    def _parts(self) -> Manifest:
        if not all(0 <= part <= len(self.resumed) for part in self.unwatched):
            raise ValueError(f"the unwatched parts are {self.unwatched}, expected some of 0 to {len(self.resumed)}")
        return self

    @property
    def request_prefix(self) -> str:
        """What every request id of this run starts with: its start to the microsecond."""
        return "pb" + "".join(char for char in self.started_at.partition("+")[0] if char.isdigit())

    @property
    def unwatched_spans(self) -> list[tuple[float, float]]:
        """From, to, seconds: where nothing is known of the client's lag and CPU share, for it was killed then."""
        edges = [0.0, *(one.at_s for one in self.resumed), math.inf]
        return [(edges[part], edges[part + 1]) for part in self.unwatched]

    @property
    def flawless(self) -> bool:
        """Whether the run went to its end and no request came to wrong, error or timeout."""
        return self.status == "complete" and not any(self.outcomes.get(bad) for bad in ("wrong", "error", "timeout"))

    def write(self, folder: Path) -> None:
        """Write `manifest.json`. Raises RecordsUnwritable."""
        write_atomic(folder / MANIFEST_FILE, self.model_dump_json(indent=2).encode())


def like_pools(sizes: Sequence[int]) -> bool:
    """Whether pools of so many blocks (or slots) may be one engine's: it finds room for a few more or less at each
    start.
    """
    return not sizes or max(sizes) <= _ALIKE * min(sizes)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a run folder, of this version or an earlier one. Raises UsageError when there is none, or none
    that can be read.
    """
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(orjson.dumps(upgrade(orjson.loads(path.read_bytes()))))
    except FileNotFoundError:
        below = any(folder.glob(f"*/**/{MANIFEST_FILE}"))
        hint = f"; `pabench results list {folder}` names the runs below it" if below else ""
        raise UsageError(f"{folder} is no run folder: it holds no {MANIFEST_FILE}{hint}") from None
    except ValidationError as error:
        count = f"{error.error_count()} validation error{'s' if error.error_count() > 1 else ''}"
        raise UsageError(f"{path} cannot be read as a manifest: {count}: {wrong_fields(error, _TOLD_FIELDS)}") from None
    except (OSError, orjson.JSONDecodeError, UsageError) as error:
        raise UsageError(f"{path} cannot be read as a manifest: {str(error).splitlines()[0]}") from None


def new_manifest(
    *, workload: Workload, seed: int, facts: EngineFacts, probe_preset: str | None, label: str, url: str,
    api_key: str | None = None, engine_started_at: str | None = None,
) -> Manifest:
    """The manifest of a run that starts now."""
    return Manifest(
        status="running", command=clean_command([_program(), *sys.argv[1:]], api_key),
        started_at=datetime.now(UTC).isoformat(), label=label, url=clean_url(url), workload=workload, seed=seed,
        engine_started_at=engine_started_at, engine=describe_engine(facts),
        probe_preset=probe_preset, host=describe_host(), versions=describe_versions(), git_commit=find_commit(),
    )


def _program() -> str:
    """What was run, without where it lies on this machine."""
    name = Path(sys.argv[0]).name
    return "pabench" if name == "__main__.py" else name


def clean_url(url: str) -> str:
    """The URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def clean_command(argv: Sequence[str], api_key: str | None) -> list[str]:
    """The command line with keys and passwords replaced by `***`."""
    command: list[str] = []
    for word in argv:
        if command and command[-1] in ("--api-key", "--key", "--token"):
            word = "***"
        elif word.startswith(("--api-key=", "--key=", "--token=")):
            word = word.split("=", 1)[0] + "=***"
        if " " in word:  # a command inside the command, as of an engine to launch
            word = without_secrets(word)
        if api_key:
            word = word.replace(api_key, "***")
        head, scheme, rest = word.partition("://")
        authority, slash, tail = rest.partition("/")
        command.append(head + scheme + "***@" + authority.rpartition("@")[2] + slash + tail
                       if "@" in authority else word)
    return command


def describe_engine(facts: EngineFacts) -> EngineRecord:
    """What the engine tells, without where its files lie."""
    kv = None if facts.kv is None else KVGeometry(
        block_size=facts.kv.block_size, num_blocks=facts.kv.num_blocks,
        prefix_caching=facts.kv.prefix_caching, kv_mode=facts.kv.kv_mode,
    )
    return EngineRecord(dialect=facts.dialect, model=facts.model, max_context_tokens=facts.max_context_tokens,
                        version=facts.version, kv=kv, capabilities=sorted(facts.capabilities))


def describe_host() -> Host:
    """This machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Host(cpu=_cpu_name(), cores=cores, memory_bytes=memory, platform=platform.platform(),
                python=platform.python_version())


def describe_versions() -> dict[str, str]:
    """Versions of pabench and of what it measures with."""
    versions = {"pabench": pabench.__version__}
    for name in _VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def find_commit() -> str | None:
    """Git commit of the checkout that pabench runs from, "-dirty" when changed; None where it is installed."""
    root = Path(pabench.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                              capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
