"""The live line of a load."""

from __future__ import annotations

import pytest

from pabench.load import ProgressState
from pabench.terminal.run_log import state_text


@pytest.mark.parametrize(("fields", "target", "shown"), [
    ({}, None, "2 in flight, 40 tok/s"),
    ({}, 3.0, "2.5 of 3 req/s, 2 in flight, 40 tok/s"),
    ({"ttft_s": 0.0523, "itl_s": 0.0101}, None, "2 in flight, 40 tok/s, TTFT 52 ms, ITL 10.1 ms"),
    ({"kv_usage": 0.25, "running": 2.0, "errors": 1}, None,
     "2 in flight, 40 tok/s, running 2, KV 25%, 1 errors"),
    ({"settled": 3}, None, "reading answers, 30%"),
])
def test_what_is_known_is_shown(fields: dict[str, float], target: float | None, shown: str) -> None:
    state = ProgressState(done=8, total=10, in_flight=2, output_tokens=160,
                          **({"errors": 0, "elapsed_s": 4.0} | fields))  # type: ignore[arg-type]
    assert state_text(state, target) == shown
