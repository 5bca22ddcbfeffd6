"""A run on disk: one Parquet row a request, one a telemetry sample, and a JSON manifest.

A run is a folder:

    manifest.json      what was run, against what, with what, and how it ended
    requests.parquet   REQUEST_COLUMNS, one row a scheduled request, whatever became of it
    telemetry.parquet  TELEMETRY_COLUMNS, one row a scrape

Times are seconds on one monotonic clock, zero at the start of the run. Every write is atomic (a temporary file,
then a rename), so a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SCHEMA_VERSION = 1

# Every scheduled request ends in exactly one of these.
OUTCOMES = ("ok", "wrong", "error", "timeout", "aborted", "unsent")


@dataclass(slots=True)
class RequestRecord:
    """What became of one scheduled request."""

    request_id: str
    index: int                          # position in the schedule
    user: int | None                    # closed loop: which user sent it
    intended_s: float                   # when the schedule says it starts
    sent_s: float | None = None         # when its bytes left
    first_s: float | None = None        # first chunk with a token
    last_s: float | None = None         # last chunk with a token
    end_s: float | None = None          # connection done, or given up
    outcome: str = "unsent"             # one of OUTCOMES
    error_kind: str | None = None       # connect | http | protocol | stream | truncated | …
    error_text: str | None = None       # engine-supplied: hostile, escape before showing
    http_status: int | None = None
    prompt_tokens: int = 0              # as sent
    max_tokens: int = 0                 # asked for, per choice
    n: int = 1
    output_tokens: int | None = None    # from usage, over all choices
    stream_tokens: int = 0              # counted in the answer, over all choices
    cached_tokens: int | None = None    # from usage
    verified_tokens: int | None = None  # equal to the oracle; None where the workload is not on the probe
    wrong_tokens: int | None = None
    finish_reasons: list[str] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)   # arrival of each token
    token_choices: list[int] = field(default_factory=list)     # choice index of each of those
    token_ids: list[int] = field(default_factory=list)         # id of each, empty where the engine gives none
    diagnosis: str | None = None        # JSON of probe.diagnosis.Diagnosis when outcome is "wrong"
