"""Workload files: what is asked of an engine, how often and for how long. TOML in `workloads/`, or a user's own.

A workload knows nothing about engines or prompts' contents; `schedule.py` draws those from it and a seed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pabench.errors import UsageError
from pabench.load.arrivals import KINDS, Arrivals, ClosedArrivals, Seconds
from pabench.load.lengths import LAWS, MAX_TOKENS, DrawnLaw, LengthLaw, TraceLaw
from pabench.resources import data_dir

MAX_REQUESTS = 100_000_000  # of a run: more would not fit into the memory that its plan takes
MAX_SEED = 2**63 - 1        # what a manifest holds
_SHARE_ERROR = 1e-6


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SharedPrefix(_Strict):
    """What prompts begin with in common: each of `groups` has `tokens` of its own, a multiple of the block size or not.

    Group k is chosen with a weight of 1 / k ** `zipf`: 0 is all alike. One group is a system prompt, several are
    few-shot examples. The tokens come on top of the prompt's own length, and are scaled like it.
    """

    tokens: int = Field(ge=1, le=MAX_TOKENS)
    groups: int = Field(default=1, ge=1, le=1_000_000)
    zipf: float = Field(default=0.0, ge=0, le=100)


class Urgency(_Strict):
    """A `share` of requests, or of sessions, with one `priority`: lower goes first, whatever an engine's sign."""

    priority: int = Field(ge=-(2**31), lt=2**31)
    share: float = Field(gt=0, le=1)


CacheState = Literal["cold", "warm"] | float


class Session(_Strict):
    """Requests that follow one another: turn t + 1 sends turn t's prompt, its answer and `turn_tokens` new ones,
    `think_s` seconds after that answer has ended. A session ends before its prompt outgrows the context.
    """

    turns: DrawnLaw = Field(discriminator="law")        # how many, where it says tokens
    turn_tokens: DrawnLaw = Field(discriminator="law")  # new in each but the first prompt, of prompt_tokens
    think_s: float = Field(default=0.0, ge=0, le=1e9)


class Bounds(_Strict):
    """When an answer is in time: TTFT from the intended start, TPOT, a deadline for each token after the one before;
    milliseconds, one of them at least.
    """

    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    deadline_ms: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        if self.ttft_ms is None and self.tpot_ms is None and self.deadline_ms is None:
            raise ValueError("give ttft_ms, tpot_ms, deadline_ms or several")
        return self


class Workload(_Strict):
    """One workload. Lengths are drawn, multiplied by `scale`, clipped by their law, then to `max_total_tokens`.

    A ring takes at least 5 prompt tokens and a fork 7: shorter draws become that long.

    `prompt`: "probe" (rings, every answer verified), "fork" (for n samples of one prompt, verified), "text" (random
    words, any model, nothing verified). `api`: the route; in a "chat" a prompt, in words, is the one message. `trace`
    is a file of requests that `pabench.traces` reads, for lengths of law "trace" and arrivals of kind "trace"; a
    relative path counts from the workload's file. Prompts as long as the
    trace's share what its hash ids say. With a `session` arrivals
    are those of sessions, and `num_requests` counts all their turns. `cancel_share` of the
    requests are cut off by the client after `cancel_after_tokens` tokens. `duration_s` ends the sending; what is in
    flight is waited for. `priorities` are drawn for sessions (without them, for requests); their shares add up to 1.
    With `beam_width` each answer is so many beams, whole and not streamed; `load.verify` says what of them is certain.
    `cache` states what the prefix cache holds at the start (`load.cache_state`). Goodput counts
    what is inside the `slo`. `window_s` (start, end) takes the place of the steady window that is found.
    """

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    prompt: Literal["probe", "fork", "text"]
    api: Literal["completions", "chat"] = "completions"
    prompt_tokens: LengthLaw
    output_tokens: LengthLaw
    arrivals: Arrivals
    trace: str | None = None
    trace_format: str = "auto"
    shared_prefix: SharedPrefix | None = None
    session: Session | None = None
    num_requests: int | None = Field(default=None, ge=1, le=MAX_REQUESTS)
    duration_s: Seconds | None = None
    scale: float = Field(default=1.0, gt=0, le=1e6)
    max_total_tokens: int | None = Field(default=None, ge=8, le=MAX_TOKENS)
    n: int = Field(default=1, ge=1, le=MAX_TOKENS)
    beam_width: int | None = Field(default=None, ge=2, le=MAX_TOKENS)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    timeout_s: Seconds = 120.0
    cancel_share: float = Field(default=0.0, ge=0, le=1)
    cancel_after_tokens: int = Field(default=8, ge=1)
    warmup_requests: int | None = Field(default=None, ge=0, le=1_000_000)
    priorities: list[Urgency] | None = Field(default=None, min_length=1)
    cache: CacheState | None = None
    slo: Bounds | None = None
    window_s: tuple[float, float] | None = Field(default=None, strict=False)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        endless = isinstance(self.arrivals, ClosedArrivals) or self.arrivals.end_s is None
        if self.num_requests is None and self.duration_s is None and endless:
            raise ValueError("give num_requests, or duration_s, or both")
        if self.num_requests is None and isinstance(self.arrivals, ClosedArrivals):
            raise ValueError("closed arrivals need num_requests (an upper bound; duration_s can end the run earlier)")
        if self.window_s is not None and not 0 <= self.window_s[0] < self.window_s[1]:
            raise ValueError(f"window_s is {list(self.window_s)}, expected a start from 0 on and a later end, "
                             "in seconds")
        traced = [name for name in ("prompt_tokens", "output_tokens", "arrivals")
                  if "trace" in (getattr(getattr(self, name), "law", ""), getattr(getattr(self, name), "kind", ""))]
        if traced and self.trace is None:
            raise ValueError(f"{', '.join(traced)} of a trace, and no trace: name its file in `trace`")
        if self.trace is not None and not traced:
            raise ValueError("a trace, and nothing taken from it: give lengths of law, or arrivals of kind, \"trace\"")
        if self.shared_prefix is not None and isinstance(self.prompt_tokens, TraceLaw):
            raise ValueError("a shared_prefix and prompts of a trace, which says itself what they share: use one")
        if self.prompt == "fork" and isinstance(self.prompt_tokens, TraceLaw):
            raise ValueError('prompts of a trace with prompt "fork", which shares nothing: use "probe" or "text"')
        chained = [name for name in ("shared_prefix", "session") if getattr(self, name) is not None]
        if chained and self.prompt == "fork":
            raise ValueError(f"{', '.join(chained)} with prompt \"fork\", which shares nothing: use \"probe\" or "
                             "\"text\"")
        if self.session is not None and traced:
            raise ValueError("a session draws its turns, a trace has its own: use one of them")
        urgencies = self.priorities or []
        if urgencies and abs((shares := sum(each.share for each in urgencies)) - 1) > _SHARE_ERROR:
            raise ValueError(f"the shares of priorities add up to {shares:g}, expected 1")
        if len({each.priority for each in urgencies}) < len(urgencies):
            raise ValueError("a priority is named twice: give each once, with its whole share")
        if self.cache is not None and self.prompt == "text":
            raise ValueError('a state of the cache is checked by tokens that are known: use prompt "probe" or "fork"')
        if isinstance(self.cache, float) and not 0 < self.cache < 1:
            raise ValueError(f'cache is {self.cache:g}, expected a share between 0 and 1, or "cold" or "warm"')
        if isinstance(self.cache, float) and (self.shared_prefix is not None or self.trace is not None):
            raise ValueError("a share of the cache with a shared_prefix or a trace, whose own hits would add to it: "
                             'leave it out, or state "cold" or "warm"')
        beside = {"n": self.n > 1, "temperature": self.temperature > 0, "top_p": self.top_p < 1,
                  "cancel_share": self.cancel_share > 0}
        if self.beam_width is not None and any(beside.values()):
            raise ValueError(f"{', '.join(name for name, is_so in beside.items() if is_so)} with beam_width: beams are "
                             "the likeliest answers, as many as wide, and come whole: leave it out")
        if self.prompt == "fork" and self.temperature == 0 and self.beam_width is None:
            raise ValueError('prompt "fork" needs temperature > 0: its two branches are drawn by chance')
        if self.prompt == "probe" and self.temperature > 1:
            raise ValueError('prompt "probe" is certain of its tokens up to temperature 1: lower it, or use "fork"')
        return self

    @property
    def users(self) -> int | None:
        """Users at once, None for open arrivals."""
        return self.arrivals.users if isinstance(self.arrivals, ClosedArrivals) else None

    @property
    def rate_per_s(self) -> float | None:
        """Offered rate, None for closed arrivals."""
        return None if isinstance(self.arrivals, ClosedArrivals) else self.arrivals.rate_per_s

    @property
    def warmups(self) -> int:
        """Requests sent before the run and not counted: as many streams as the run has at once, unless told."""
        if self.warmup_requests is not None:
            return self.warmup_requests
        return self.users if self.users is not None else 4

    @property
    def load_text(self) -> str:
        """The load in words, e.g. "8 users" or "4 req/s Poisson"; of sessions "4 sessions/s Poisson"."""
        return self.arrivals.text(self.rate_unit)

    @property
    def rate_unit(self) -> str:
        """What arrives at a rate: requests, or sessions, whose later turns follow when they follow."""
        return "req/s" if self.session is None else "sessions/s"


def known_workloads() -> dict[str, Path]:
    """Name -> file of the workloads that ship with pabench, sorted by name."""
    return {path.stem: path for path in sorted(data_dir("workloads").glob("*.toml"))}


def load_workload(name_or_path: str | Path, **overrides: Any) -> Workload:
    """A workload by name or file, with fields replaced.

    `overrides` are field names; None leaves the file's value. `users`, `think_s` and `rate_per_s` change the
    arrivals: `users` makes them closed, `rate_per_s` keeps those of one rate, and makes others Poisson. Raises
    UsageError.
    """
    path = _find(name_or_path)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"workload {path}: cannot be read as TOML: {error}") from None
    fields.setdefault("name", path.stem)
    if isinstance(fields.get("trace"), str):
        fields["trace"] = str(path.parent / fields["trace"])
    given = {key: value for key, value in overrides.items() if value is not None}
    _override_arrivals(fields, given, path)
    fields.update(given)
    return parse_workload(fields, str(path))


def sweep_loads(users: str | None, rates: str | None) -> list[dict[str, float]]:
    """Overrides of a workload for each load of a sweep, of lists as a user gives them. Raises UsageError."""
    if (users is None) == (rates is None):
        raise UsageError("a sweep needs --users or --rates, one of them, e.g. --users 1,4,16")
    field, text, number = ("users", users, int) if users is not None else ("rate_per_s", rates, float)
    try:
        loads = [number(word) for word in (text or "").split(",")]
    except ValueError:
        loads = []
    if not loads or min(loads) <= 0 or len(set(loads)) < len(loads):
        raise UsageError(f"--{field.partition('_')[0]}{'s' if field != 'users' else ''} is {text!r}, expected numbers "
                         "above 0 with commas between them, each once")
    return [{field: load} for load in loads]


def parse_workload(fields: dict[str, Any], where: str) -> Workload:
    """A workload from its fields. Raises UsageError of one line that names `where` and each wrong field."""
    try:
        return Workload.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"workload {where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def _find(name_or_path: str | Path) -> Path:
    known = known_workloads()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise UsageError(
        f"unknown workload {str(name_or_path)!r}: neither a file nor one of {', '.join(known) or '(none installed)'}"
    )


def _override_arrivals(fields: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    """Move `users`, `think_s` and `rate_per_s` from `given` into the arrivals."""
    keys = {key: given.pop(key) for key in ("users", "think_s", "rate_per_s") if key in given}
    if not keys:
        return
    if "rate_per_s" in keys and len(keys) > 1:
        raise UsageError(f"workload {path}: rate_per_s and {', '.join(k for k in keys if k != 'rate_per_s')} "
                         "exclude each other: users wait for answers, a rate does not")
    now = given.pop("arrivals", None) or fields.get("arrivals")
    now = dict(now) if isinstance(now, dict) else {}
    if "users" in keys and now.get("kind") != "closed":
        now = {"kind": "closed"}
    if "rate_per_s" in keys and now.get("kind") not in ("constant", "poisson", "gamma"):
        now = {"kind": "poisson"}
    fields["arrivals"] = now | keys


def _explain(error: Any) -> str:
    tags = {*LAWS, *KINDS, "float"}
    names = [str(part) for place, part in enumerate(error["loc"])
             if not place or (part not in tags and not str(part).startswith("literal["))]
    message = error["msg"].removeprefix("Value error, ")
    got = error.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    return f"{'.'.join(names)}: {message}{shown}" if names else message
