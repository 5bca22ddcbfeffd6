"""One trace in memory: a few numpy arrays, the same for every file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pabench.errors import UsageError

MAX_TOKENS = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What the prompts have in common: prompt i is hashed in blocks of `block_tokens` tokens, the last one partial.

    ids      [total] int64    equal ids, equal content; all prompts' one after the other
    offsets  [n + 1] int64    prompt i has ids[offsets[i]:offsets[i + 1]]
    """

    block_tokens: int
    ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def of(self, i: int) -> tuple[int, ...]:
        """Ids of prompt i, first block first. Empty where the file tells none: it shares nothing then."""
        return tuple(self.ids[self.offsets[i] : self.offsets[i + 1]].tolist())

    def take(self, rows: npt.NDArray[np.int64]) -> Prefixes:
        """Those of some prompts, in that order."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        starts = np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Prefixes(self.block_tokens, self.ids[starts + np.arange(offsets[-1])], offsets)


@dataclass(frozen=True, slots=True)
class Trace:
    """n >= 1 requests in order of arrival.

    arrival_s      [n] float64  seconds since the first arrival; all 0 where the file has no times
    prompt_tokens  [n] int32    at least 1
    output_tokens  [n] int32    at least 1
    prefixes       what prompts share, None where the format does not tell
    dropped        reason -> rows of the file that make no sense and are not in the arrays
    """

    format: str
    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    prefixes: Prefixes | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def num_dropped(self) -> int:
        """Rows that make no sense."""
        return sum(self.dropped.values())

    def head(self, limit: int) -> Trace:
        """The first `limit` requests."""
        prefixes = self.prefixes and self.prefixes.take(np.arange(min(limit, len(self))))
        return Trace(self.format, self.arrival_s[:limit], self.prompt_tokens[:limit], self.output_tokens[:limit],
                     prefixes, self.dropped)


def build_trace(
    name: str, arrival_s: npt.NDArray[np.float64], prompt_tokens: npt.NDArray[np.float64],
    output_tokens: npt.NDArray[np.float64], prefixes: Prefixes | None = None, source: str = "the file",
) -> Trace:
    """A trace of columns as a file gave them, all [n] float64 with NaN for what is no number.

    Rows that make no sense are left out and counted by their reason; the others are put in order of arrival.
    Raises UsageError when none is left.
    """
    good = np.ones(len(arrival_s), bool)
    dropped: dict[str, int] = {}
    for reason, bad in (
        ("the time is no number", ~np.isfinite(arrival_s)),
        ("the prompt's length is no whole number of tokens from 1 up", ~_is_length(prompt_tokens)),
        ("the output's length is no whole number of tokens from 1 up", ~_is_length(output_tokens)),
    ):
        if count := int((good & bad).sum()):
            dropped[reason] = count
        good &= ~bad
    if not good.any():
        raise UsageError(f"{source} has {len(good)} rows and none makes sense: {dropped or 'it is empty'}; "
                         "expected at least one request with a prompt and an output")
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(arrival_s[rows], kind="stable")]
    return Trace(name, arrival_s[rows] - arrival_s[rows[0]], prompt_tokens[rows].astype(np.int32),
                 output_tokens[rows].astype(np.int32), prefixes and prefixes.take(rows), dropped)


def _is_length(tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """[n] bool: a whole number of tokens that an engine can be asked for. NaN is not."""
    return np.asarray((tokens >= 1) & (tokens <= MAX_TOKENS) & (np.floor(tokens) == tokens), bool)
