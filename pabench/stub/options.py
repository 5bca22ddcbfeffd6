"""Timing and faults of the stub engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pabench.errors import UsageError


@dataclass(frozen=True, slots=True)
class StubOptions:
    """Timing and faults. Times in milliseconds; a fault that counts tokens counts those of one request."""

    host: str = "127.0.0.1"
    port: int = 8000                # 0: any free one
    model: str = "stub"
    ttft_ms: float = 50.0           # from the request's arrival to its first chunk with a token
    itl_ms: float = 10.0            # between tokens; a chunk of k tokens follows k times this after the one before
    end_ms: float = 0.0             # from a stream's last token to its end
    tokens_per_chunk: int = 1
    max_model_len: int = 65536      # tokens, prompt and output
    role_chunk: bool = False        # an empty first chunk at once, as chat servers send it
    no_done: bool = False           # leave out `[DONE]`
    no_stamps: bool = False         # of the fast stub: leave out when a chunk was written, as engines do
    status: int | None = None       # refuse every generation with this HTTP status
    error_rate: float = 0.0         # share of generations refused with 500, spread evenly
    error_after: int | None = None  # tokens, then an error inside the stream
    stall_after: int | None = None  # tokens, then silence
    cut_after: int | None = None    # tokens, then the connection is cut
    die_after: int | None = None    # generations served, then the engine is gone
    wrong_every: int | None = None  # every so many tokens one is wrong
    seed: int = 0                   # of the samples drawn at a fork

    def __post_init__(self) -> None:
        at_least = {"ttft_ms": 0, "itl_ms": 0, "end_ms": 0, "tokens_per_chunk": 1, "max_model_len": 1, "wrong_every": 1,
                    "error_after": 0, "stall_after": 0, "cut_after": 0, "die_after": 0, "port": 0}
        for name, low in at_least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise UsageError(f"stub option {name}: got {value}, expected at least {low}")
        if not 0 <= self.error_rate <= 1:
            raise UsageError(f"stub option error_rate: got {self.error_rate}, expected a share from 0 to 1")
        if self.status is not None and not 400 <= self.status <= 599:
            raise UsageError(f"stub option status: got {self.status}, expected an HTTP error from 400 to 599")
        if self.port > 65535:
            raise UsageError(f"stub option port: got {self.port}, expected at most 65535")
