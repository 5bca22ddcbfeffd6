"""Files of traces. A format is known by the first line of the file: a CSV header, or the keys of a JSON object."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd

from pabench.engines.cleaning import clean
from pabench.errors import UsageError
from pabench.traces.trace import Prefixes, Trace, build_trace

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a format keeps what a trace needs: names of columns or keys, several where users' files differ.

    `time_unit` is "s", "ms" or "date"; `hash_block_tokens` is 0 where prompts have no hashes.
    """

    is_json: bool
    prompt: tuple[str, ...]
    output: tuple[str, ...]
    time: tuple[str, ...] = ()
    time_unit: str = "s"
    marks: tuple[str, ...] = ()  # must be there too: tells this format from others with the same names
    hash_block_tokens: int = 0

    def fits(self, names: set[str]) -> bool:
        """Whether a file with these columns or keys may be of this format."""
        wanted = [any(n in names for n in self.prompt), any(n in names for n in self.output)]
        return all(wanted) and names.issuperset(self.marks)

    def tell(self) -> str:
        """What the format looks like, for an error."""
        names = [" or ".join(self.prompt), " or ".join(self.output), *self.marks]
        return f"{'JSON lines' if self.is_json else 'CSV'} with {', '.join(names)}"


_PLAIN_TIMES = ("arrival_s", "arrived_at")

# The first that fits is taken: the more particular ones stand first.
FORMATS: dict[str, Layout] = {
    "azure": Layout(False, ("ContextTokens",), ("GeneratedTokens",), ("TIMESTAMP",), "date", ("TIMESTAMP",)),
    "burstgpt": Layout(False, ("Request tokens",), ("Response tokens",), ("Timestamp",), "s", ("Timestamp",)),
    "lengths-csv": Layout(False, ("num_prefill_tokens", "prompt_tokens"), ("num_decode_tokens", "output_tokens"),
                          _PLAIN_TIMES),
    "bailian": Layout(True, ("input_length",), ("output_length",), ("timestamp",), "s",
                      ("timestamp", "chat_id", "hash_ids"), 16),
    "mooncake": Layout(True, ("input_length",), ("output_length",), ("timestamp",), "ms",
                       ("timestamp", "hash_ids"), 512),
    "timed-jsonl": Layout(True, ("input_length",), ("output_length",), ("timestamp",), "ms", ("timestamp",)),
    "lengths-jsonl": Layout(True, ("prompt_tokens", "prompt", "input_length"), ("output_tokens", "output_length"),
                            _PLAIN_TIMES),
}
_ANY_TIME = frozenset(name for layout in FORMATS.values() for name in layout.time)


def read_trace(path: str | Path, format: str = "auto") -> Trace:
    """The requests of a file, in order of arrival.

    `format` is a name of FORMATS, or "auto": by the file's first line. A file without times has all arrivals at 0.
    Raises UsageError for a file that cannot be read, is of no known format or has no sensible row.
    """
    path = Path(path)
    first = _first_line(path)
    if first.startswith("["):
        raise UsageError(f"{path} is one JSON list, as ShareGPT's conversations come: expected lengths in tokens, "
                         "which depend on the tokenizer. Count them with your model's, and write a CSV of "
                         "num_prefill_tokens,num_decode_tokens or JSON lines of prompt_tokens and output_tokens")
    is_json = first.startswith("{")
    names = _keys(first, path) if is_json else {name.strip().strip('"') for name in first.split(",")}
    layout_name = _detect(path, names, is_json) if format == "auto" else format
    layout = FORMATS.get(layout_name)
    if layout is None:
        raise UsageError(f"{format!r} is no format of a trace, expected auto or one of {', '.join(FORMATS)}")
    if layout.is_json != is_json or not layout.fits(names):
        raise UsageError(f"{path} is not of the format {layout_name}: got {_told(names)}, expected {layout.tell()}; "
                         "leave the format out to have it detected")
    time = next((name for name in layout.time if name in names), None)
    if time is None:
        _refuse_times(names, f"{path} has", f"which the format {layout_name} does not read")
    columns = _json_columns(path, layout, time) if is_json else _csv_columns(path, layout, time)
    return build_trace(layout_name, *columns, source=str(path))


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = next((line.strip() for line in file if line.strip()), "")
    except OSError as error:
        raise UsageError(f"cannot read the trace {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text, expected a CSV or JSON-lines file (unpack it first)") from None
    if not line:
        raise UsageError(f"{path} is empty, expected a trace")
    return line


def _keys(line: str, path: Path) -> set[str]:
    try:
        return set(orjson.loads(line))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: the first line is no JSON object ({error}); expected one object a line") from None


def _detect(path: Path, names: set[str], is_json: bool) -> str:
    for name, layout in FORMATS.items():
        if layout.is_json == is_json and layout.fits(names):
            return name
    known = "; ".join(f"{name} ({layout.tell()})" for name, layout in FORMATS.items())
    raise UsageError(f"{path} is of no known format: its {'keys' if is_json else 'columns'} are {_told(names)}. "
                     f"Known: {known}")


def _refuse_times(names: Iterable[str], who_has: str, why: str) -> None:
    """Raise UsageError where there are times that would not be read: all requests would come at once, unsaid."""
    if stray := sorted(_ANY_TIME.intersection(names)):
        raise UsageError(f"{who_has} {stray[0]!r}, {why}: give each request its arrival_s, in seconds, or none a time")


def _told(names: set[str]) -> str:
    """Names of columns, cut short: the first line of a file that is no trace may be anything."""
    return clean(", ".join(sorted(names)), 200)


# Arrival (seconds), prompt and output lengths, [n] each with NaN for what is no number; what the prompts share.
Columns = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], Prefixes | None]


def _csv_columns(path: Path, layout: Layout, time: str | None) -> Columns:
    try:
        frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skipinitialspace=True, index_col=False)
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}") from None
    frame.columns = frame.columns.str.strip()
    prompt = _numbers(frame[next(name for name in layout.prompt if name in frame.columns)])
    output = _numbers(frame[next(name for name in layout.output if name in frame.columns)])
    if time is None:
        arrival = np.zeros(len(frame))
    elif layout.time_unit == "date":
        moments = pd.to_datetime(frame[time], errors="coerce", format="ISO8601", utc=True)
        arrival = np.asarray((moments - moments.min()).dt.total_seconds(), np.float64)
    else:
        arrival = _numbers(frame[time])
    return arrival, prompt, output, None


def _numbers(column: pd.Series[str]) -> npt.NDArray[np.float64]:
    return np.asarray(pd.to_numeric(column, errors="coerce"), np.float64)


def _json_columns(path: Path, layout: Layout, time: str | None) -> Columns:
    arrival, prompt, output = array("d"), array("d"), array("d")
    ids, offsets = array("q"), array("q", [0])
    scale = 1e-3 if layout.time_unit == "ms" else 1.0
    for row in _json_rows(path):
        where = f"{path}, request {len(prompt) + 1}"
        if time is None:
            _refuse_times(row, f"{where}, has", "and the first one has no time")
        if not layout.hash_block_tokens and row.get("hash_ids"):
            raise UsageError(f"{where}, has hash_ids, and the first one has not, or no "
                             'timestamp: give each of them "timestamp" and "hash_ids" (an empty list shares nothing)')
        prompt.append(_length(_first(row, layout.prompt), where))
        output.append(_length(_first(row, layout.output), where))
        arrival.append(0.0 if time is None else _number(row.get(time)) * scale)
        if layout.hash_block_tokens:
            ids.extend(_ids(row, prompt[-1], layout.hash_block_tokens, path, len(prompt)))
            offsets.append(len(ids))
    prefixes = None
    if layout.hash_block_tokens:
        prefixes = Prefixes(layout.hash_block_tokens, np.array(ids, np.int64), np.array(offsets, np.int64))
    return np.array(arrival), np.array(prompt), np.array(output), prefixes


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        for at, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not line:
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UsageError(f"{path}, line {at}, is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise UsageError(f"{path}, line {at}, is {type(row).__name__}, expected an object")
            yield row


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else NAN


def _length(value: Any, where: str) -> float:
    """Tokens: a number, or as many as a list of token ids has. Text has no length without a tokenizer."""
    if isinstance(value, str):
        raise UsageError(f"{where}, gives text ({value[:40]!r}) where a length in tokens is expected: "
                         "put the number of tokens, or the list of token ids, in its place")
    return float(len(value)) if isinstance(value, list) else _number(value)


def _ids(row: Mapping[str, Any], prompt: float, block_tokens: int, path: Path, at: int) -> list[int]:
    """Ids of a row's blocks; they must not reach past its prompt."""
    ids = row.get("hash_ids", [])
    if not isinstance(ids, list) or not all(isinstance(i, int) and -(2**63) <= i < 2**63 for i in ids):
        raise UsageError(f"{path}, request {at}: hash_ids is {str(ids)[:60]!r}, expected a list of whole numbers")
    if prompt >= 1 and len(ids) * block_tokens >= prompt + block_tokens:
        raise UsageError(f"{path}, request {at}: {len(ids)} hash_ids of {block_tokens} tokens for a prompt of "
                         f"{prompt:.0f} tokens, expected at most {-(-prompt // block_tokens):.0f}")
    return ids
