"""Latencies of a run's requests, in milliseconds, one sample a request or token. Definitions: docs/measurement.md."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Samples = NDArray[np.float64]
SLICE = 50_000  # requests at a time: a long run's tokens several times over would not fit into memory


def ok_requests(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that latencies are taken from: answered in full, and right."""
    return requests[requests["outcome"] == "ok"]


def ttft_ms(requests: pd.DataFrame, *, intended: bool = False) -> Samples:
    """First token, from the bytes' leaving, or from the `intended` start. Answers without token times have none."""
    streamed = requests[requests["first_s"].notna()]
    return _ms(streamed["first_s"] - streamed["intended_s" if intended else "sent_s"])


def e2e_ms(requests: pd.DataFrame, *, intended: bool = False) -> Samples:
    """Last token, or the end of an answer without token times, from the bytes' leaving or the `intended` start."""
    return _ms(requests["last_s"].fillna(requests["end_s"]) - requests["intended_s" if intended else "sent_s"])


def lateness_ms(requests: pd.DataFrame) -> Samples:
    """What the client added: asked - intended. What it takes to connect, before the bytes leave, is the engine's.

    Older records do not tell when it was asked: sent - intended.
    """
    return _ms(requests["asked_s"].fillna(requests["sent_s"]) - requests["intended_s"])


def tpot_ms(requests: pd.DataFrame) -> Samples:
    """(last - first) / (tokens - 1) of each sample of an answer that has at least two tokens."""
    return _in_slices(requests, _tpot_ms)


def _tpot_ms(requests: pd.DataFrame) -> Samples:
    times, starts = _sample_times(requests)
    counts = np.diff(starts)
    many = counts > 1
    spans = times[starts[1:][many] - 1] - times[starts[:-1][many]]
    return np.asarray(spans / (counts[many] - 1) * 1e3)


def itl_ms(requests: pd.DataFrame) -> Samples:
    """Gaps between the tokens of a sample, one entry a token after the first.

    Tokens that came in one chunk share its arrival: its gap to the chunk before is spread over them evenly.
    """
    return _in_slices(requests, _itl_ms)


def _itl_ms(requests: pd.DataFrame) -> Samples:
    arrivals, sizes, first = _chunks(requests)
    gaps = np.diff(arrivals, prepend=0.0) / sizes
    # The first chunk's own tokens have no gap before them that could be told: they came at once.
    gaps[first] = 0.0
    return np.repeat(gaps, sizes - first) * 1e3


def _chunks(requests: pd.DataFrame) -> tuple[Samples, NDArray[np.int64], NDArray[np.bool_]]:
    """The chunks of all samples, one sample after the other: arrival in seconds, tokens, and whether it is its sample's
    first; `[num_chunks]` each.
    """
    times, starts = _sample_times(requests)
    first = np.zeros(len(times), dtype=bool)
    first[starts[:-1]] = True
    chunks = np.flatnonzero(first | (np.diff(times, prepend=np.nan) != 0))
    return times[chunks], np.diff(np.append(chunks, len(times))), first[chunks]


def spread_share(requests: pd.DataFrame) -> float | None:
    """Share of `itl_ms` that are even parts of a chunk's gap: it brought several tokens. None where there are none."""
    spread = total = 0
    for at in range(0, len(requests), SLICE):
        _, sizes, first = _chunks(requests[at:at + SLICE])
        entries = sizes - first
        spread, total = spread + int(entries[sizes > 1].sum()), total + int(entries.sum())
    return spread / total if total else None


def num_gaps(requests: pd.DataFrame) -> NDArray[np.int64]:
    """Of each request's entries in `itl_ms`, which has them request by request: `[num_requests]`. Of several samples
    each has one gap less than tokens.
    """
    return np.asarray([len(choices) - len(np.unique(choices)) for choices in requests["token_choices"]], dtype=np.int64)


def normalised_ms(requests: pd.DataFrame) -> Samples:
    """E2E latency over output tokens, as the vLLM paper has it."""
    tokens = output_tokens(requests)
    return e2e_ms(requests)[tokens > 0] / tokens[tokens > 0]


def output_tokens(requests: pd.DataFrame) -> Samples:
    """Output tokens of each request: from usage, which may claim anything, as many as were asked for at most; else
    counted in the stream.
    """
    asked = requests["n"] * requests["max_tokens"]
    told = requests["output_tokens"].clip(upper=asked)
    return told.fillna(requests["stream_tokens"]).to_numpy(dtype=np.float64)


def prompt_tokens(requests: pd.DataFrame) -> Samples:
    """Tokens of each prompt: from usage, else as the client counted, which of a text and behind a chat template is a
    guess.
    """
    return requests["usage_prompt_tokens"].fillna(requests["prompt_tokens"]).to_numpy(dtype=np.float64)


def token_times(requests: pd.DataFrame) -> Samples:
    """Arrival of every token of every request: `[num_tokens]` seconds, one request behind the other."""
    return _joined(requests["token_times_s"])


def _in_slices(requests: pd.DataFrame, samples_of: Callable[[pd.DataFrame], Samples]) -> Samples:
    return np.concatenate([np.empty(0), *(samples_of(requests[at:at + SLICE])
                                          for at in range(0, len(requests), SLICE))])


def _sample_times(requests: pd.DataFrame) -> tuple[Samples, NDArray[np.int64]]:
    """Token times of all samples, one sample after the other, each in order: `[num_tokens]` seconds; and where each
    begins, and the last one ends: `[num_samples + 1]`.
    """
    times = _joined(requests["token_times_s"])
    lengths = np.asarray([len(row) for row in requests["token_times_s"]], dtype=np.int64)
    if (requests["n"] == 1).all():  # to sort a million answers of a hundred tokens takes a minute
        ends = np.cumsum(lengths[lengths > 0])
        if _in_order(times, ends):
            return times, np.append(0, ends)
    choices = _joined(requests["token_choices"])
    owner = np.repeat(np.arange(len(requests)), lengths)
    order = np.lexsort((times, choices, owner))
    times, choices, owner = times[order], choices[order], owner[order]
    begins = (np.diff(owner, prepend=-1) != 0) | (np.diff(choices, prepend=-1) != 0)
    return times, np.append(np.flatnonzero(begins), len(times))


def _in_order(times: Samples, ends: NDArray[np.int64]) -> bool:
    """Whether each sample's times ascend. A kernel's stamp is told to a microsecond: two may have changed places."""
    falls = np.diff(times) < 0
    falls[ends[:-1] - 1] = False
    return not falls.any()


def _joined(rows: pd.Series) -> Samples:
    return np.concatenate([np.empty(0), *rows])


def _ms(seconds: pd.Series) -> Samples:
    return seconds.to_numpy(dtype=np.float64) * 1e3
