"""Cases as data: small, frozen, JSON there and back. All tensors of a case are drawn from it, the same on any machine.

    AttendCase   a batch of sequences to attend over: `drawing.draw_attend`
    WriteCase    new keys and values into slots: `drawing.draw_write`
    CopyCase     blocks to blocks: `drawing.draw_copy`
    MergeCase    partial results over disjoint positions to one: `drawing.draw_merge`

A failing case is shrunk to a small one and goes into a case file; `case_from_json` makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# As torch names them, and it is not needed to know them: the client of servers runs without torch.
DTYPES = ("float32", "float16", "bfloat16")
SCALED = ("int8", "float8_e4m3fn")
STORAGE = (*DTYPES, *SCALED)
SCALES = ("tensor", "head", "slot")
# Where a cache lies in memory: see `layouts`.
LAYOUTS = ("plain", "hnd", "combined", "padded", "far")
# What stands where nothing may be read: NaN, infinity, the largest number; zero hides faults, and is to compare with.
FILLS = ("nan", "inf", "huge", "zero")
# What a table holds in entries that name nothing: a poisoned block, -1, or a number that no block has.
TAILS = ("poison", "minus-one", "beyond")
# How tables and lengths are given: two widths, or as views (columns of a wider table, one length spread over all).
ARGUMENTS = ("int32", "int64", "views")
# What is written: around zero, positive and far from it, over many magnitudes, or all zero.
NUMBERS = ("normal", "positive", "wide", "zeros")


@dataclass(frozen=True, slots=True)
class CacheForm:
    """Sizes and storage of a cache, without its number of blocks."""

    block_size: int = 16
    num_kv_heads: int = 1
    head_dim: int = 64
    value_dim: int = 64
    storage: str = "float32"  # of STORAGE
    scales: str = ""          # of SCALES where the storage is one of SCALED, else ""
    layout: str = "plain"     # of LAYOUTS
    far_elements: int = 2**31  # that a cache in the layout "far" has before its last blocks, which are those in use

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises ValueError."""
        _check(self.storage in STORAGE, f"storage {self.storage!r}, expected one of {', '.join(STORAGE)}")
        _check(self.layout in LAYOUTS, f"layout {self.layout!r}, expected one of {', '.join(LAYOUTS)}")
        scaled = self.storage in SCALED
        _check(self.scales in (SCALES if scaled else ("",)), f"scales {self.scales!r} for a cache of {self.storage}")
        far = self.layout == "far" or self.far_elements == 2**31
        _check(far, f"{self.far_elements} elements before a cache in the layout {self.layout!r}")
        sizes = (self.block_size, self.num_kv_heads, self.head_dim, self.value_dim)
        _check(min(sizes) >= 1, f"a size below 1 in {sizes}")
        same = self.head_dim == self.value_dim
        _check(self.layout != "combined" or same, "keys and values of different widths in one combined tensor")


@dataclass(frozen=True, slots=True)
class AttendCase:
    """A batch: sequence s has context_lens[s] positions, of which the last query_lens[s] are query rows."""

    context_lens: tuple[int, ...]
    query_lens: tuple[int, ...]
    form: CacheForm = field(default_factory=CacheForm)
    group: int = 1                  # query heads of a KV head
    dtype: str = "float32"          # of the queries and the result
    scale: float | None = None      # of the scores; None: 1 / sqrt(head_dim)
    window: int | None = None
    soft_cap: float | None = None
    alibi: bool = False
    with_lse: bool = False          # whether the log-sum-exp is asked for: kernels have two entries
    shared_prefix_len: int = 0      # positions that all sequences have in the same blocks
    fill: str = "nan"               # of FILLS
    tail: str = "poison"            # of TAILS
    arguments: str = "int32"        # of ARGUMENTS
    seed: int = 0                   # of what is written and asked
    placement: int = 0              # of where the blocks lie

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises ValueError."""
        _check(len(self.context_lens) == len(self.query_lens) > 0, "context_lens and query_lens differ in length")
        for context, rows in zip(self.context_lens, self.query_lens, strict=True):
            _check(context >= 0 and rows >= 0, f"a sequence of {context} positions and {rows} query rows")
            _check(context == 0 or rows <= context, f"{rows} query rows for a context of {context} positions")
            room = context - self.shared_prefix_len
            _check(not self.shared_prefix_len or room >= rows, "a query row inside the shared prefix")
        _check(self.shared_prefix_len % self.form.block_size == 0, "the shared prefix ends inside a block")
        _check(self.dtype in DTYPES, f"dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        _check(self.window is None or self.window >= 1, f"a window of {self.window}")
        _check(self.soft_cap is None or self.soft_cap > 0, f"a soft cap of {self.soft_cap}")
        for value, known in ((self.fill, FILLS), (self.tail, TAILS), (self.arguments, ARGUMENTS)):
            _check(value in known, f"{value!r}, expected one of {', '.join(known)}")

    @property
    def score_scale(self) -> float:
        """What scores are multiplied with."""
        return self.form.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def num_q_heads(self) -> int:
        """Query heads in all."""
        return self.form.num_kv_heads * self.group


@dataclass(frozen=True, slots=True)
class WriteCase:
    """Token i goes into slots[i], or nowhere where that is negative. In the layout "far", slots count from far up."""

    slots: tuple[int, ...]
    num_blocks: int = 2
    form: CacheForm = field(default_factory=CacheForm)
    dtype: str = "float32"     # of the new keys and values
    numbers: str = "normal"    # of NUMBERS
    arguments: str = "int64"   # of ARGUMENTS; "views": keys and values are slices of one tensor
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises ValueError."""
        live = [slot for slot in self.slots if slot >= 0]
        _check(len(set(live)) == len(live), "a slot is written twice")
        _check(max(live, default=0) < self.num_blocks * self.form.block_size, "a slot past the last block")
        _check(self.dtype in DTYPES, f"dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        _check(self.numbers in NUMBERS, f"{self.numbers!r}, expected one of {', '.join(NUMBERS)}")
        _check(self.arguments in ARGUMENTS, f"{self.arguments!r}, expected one of {', '.join(ARGUMENTS)}")


@dataclass(frozen=True, slots=True)
class CopyCase:
    """Block pairs (from, to), all as if at once; within one cache, or into another of target_blocks blocks."""

    pairs: tuple[tuple[int, int], ...]
    num_blocks: int = 2
    target_blocks: int | None = None  # None: into the same cache
    form: CacheForm = field(default_factory=CacheForm)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises ValueError."""
        targets = [to for _, to in self.pairs]
        room = self.num_blocks if self.target_blocks is None else self.target_blocks
        _check(len(set(targets)) == len(targets), "a block is written twice")
        _check(all(0 <= at < self.num_blocks and 0 <= to < room for at, to in self.pairs), "a pair names no block")
        _check(self.form.layout != "far" or self.target_blocks is None, "two caches far up")


@dataclass(frozen=True, slots=True)
class MergeCase:
    """Partial results [parts, rows, heads, dim] with their LSE; `empty` (part, row) pairs have seen nothing."""

    parts: int = 2
    rows: int = 1
    heads: int = 1
    dim: int = 16
    dtype: str = "float32"
    spread: float = 1.0                         # standard deviation of the parts' LSE
    empty: tuple[tuple[int, int], ...] = ()
    views: bool = False                         # parts in other strides: rows innermost, not the dim
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises ValueError."""
        _check(min(self.parts, self.rows, self.heads, self.dim) >= 1, "a size below 1")
        _check(self.dtype in DTYPES, f"dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        inside = all(0 <= part < self.parts and 0 <= row < self.rows for part, row in self.empty)
        _check(inside, "an empty pair that is not there")


Case = AttendCase | WriteCase | CopyCase | MergeCase
_MOST_TOLD = 16  # entries of one value that a line shows
_KINDS: dict[str, type[Case]] = {"attend": AttendCase, "write": WriteCase, "copy": CopyCase, "merge": MergeCase}


def case_to_json(case: Case) -> dict[str, Any]:
    """As a JSON object; `operation` says which kind it is."""
    return {"operation": next(name for name, kind in _KINDS.items() if type(case) is kind), **asdict(case)}


def case_from_json(document: Mapping[str, Any]) -> Case:
    """The case of `case_to_json`. Raises ValueError for what is none."""
    kind = _KINDS.get(document.get("operation", ""))
    if kind is None:
        raise ValueError(f"operation {document.get('operation')!r}, expected one of {', '.join(_KINDS)}")
    values = {name: _tuples(value) for name, value in document.items() if name != "operation"}
    try:
        if "form" in values:
            values["form"] = CacheForm(**values["form"])
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"no {document['operation']} case: {error}") from error


def in_words(case: Case) -> str:
    """What is not as usual in a case, in a line."""
    return f"{type(case).__name__}({', '.join(_told(case))})"


def _told(part: Case | CacheForm) -> list[str]:
    told = []
    for each in fields(part):
        value = getattr(part, each.name)
        if isinstance(value, CacheForm):
            told += _told(value)
        elif value != each.default:
            told.append(f"{each.name} {_short(value)}")
    return told


def _short(value: Any) -> str:
    """A long tuple by its ends: the case file has all of it."""
    if not isinstance(value, tuple) or len(value) <= _MOST_TOLD:
        return str(value)
    if len(set(value)) == 1:
        return f"{len(value)} times {value[0]}"
    return f"({', '.join(map(str, value[:4]))}, … {value[-1]}; {len(value)} in all)"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(f"no case: {problem}")
