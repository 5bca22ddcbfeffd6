"""Latencies of a run's requests, in milliseconds, one sample a request or token. Definitions: docs/measurement.md."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Samples = NDArray[np.float64]


def ok_requests(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that latencies are taken from: answered in full, and right."""
    return requests[requests["outcome"] == "ok"]


def ttft_ms(requests: pd.DataFrame, *, intended: bool = False) -> Samples:
    """First token, from the bytes' leaving, or from the `intended` start. Answers without token times have none."""
    streamed = requests[requests["first_s"].notna()]
    return _ms(streamed["first_s"] - streamed["intended_s" if intended else "sent_s"])


def e2e_ms(requests: pd.DataFrame) -> Samples:
    """Last token, or the end of an answer without token times, from the bytes' leaving."""
    return _ms(requests["last_s"].fillna(requests["end_s"]) - requests["sent_s"])


def lateness_ms(requests: pd.DataFrame) -> Samples:
    """What the client added before the bytes left: sent - intended."""
    return _ms(requests["sent_s"] - requests["intended_s"])


def tpot_ms(requests: pd.DataFrame) -> Samples:
    """(last - first) / (tokens - 1) of each sample of an answer that has at least two tokens."""
    spans = [(times[-1] - times[0]) / (len(times) - 1) for times in _sample_times(requests) if len(times) > 1]
    return np.asarray(spans, dtype=np.float64) * 1e3


def itl_ms(requests: pd.DataFrame) -> Samples:
    """Gaps between the tokens of a sample, one entry a token after the first.

    Tokens that came in one chunk share its arrival: its gap to the chunk before is spread over them evenly.
    """
    gaps: list[Samples] = []
    for times in _sample_times(requests):
        arrivals, counts = np.unique(times, return_counts=True)
        if len(times) > 1:
            # The first chunk's own tokens have no gap before them that could be told: they came at once.
            gaps.append(np.zeros(counts[0] - 1))
            gaps.append(np.repeat(np.diff(arrivals) / counts[1:], counts[1:]))
    return np.concatenate(gaps) * 1e3 if gaps else np.empty(0)


def normalised_ms(requests: pd.DataFrame) -> Samples:
    """E2E latency over output tokens, as the vLLM paper has it."""
    tokens = output_tokens(requests)
    return e2e_ms(requests)[tokens > 0] / tokens[tokens > 0]


def output_tokens(requests: pd.DataFrame) -> Samples:
    """Output tokens of each request: from usage, else counted in the stream."""
    return requests["output_tokens"].fillna(requests["stream_tokens"]).to_numpy(dtype=np.float64)


def token_times(requests: pd.DataFrame) -> Samples:
    """Arrival of every token of every request, seconds, sorted."""
    times = [np.asarray(row, dtype=np.float64) for row in requests["token_times_s"]]
    return np.sort(np.concatenate(times)) if times else np.empty(0)


def _sample_times(requests: pd.DataFrame) -> list[Samples]:
    """Token times, seconds, of every sample of every request."""
    found: list[Samples] = []
    for times, choices in zip(requests["token_times_s"], requests["token_choices"], strict=True):
        all_times, of = np.asarray(times, dtype=np.float64), np.asarray(choices, dtype=np.int64)
        found += [all_times[of == choice] for choice in np.unique(of)]
    return found


def _ms(seconds: pd.Series) -> Samples:
    return seconds.to_numpy(dtype=np.float64) * 1e3
