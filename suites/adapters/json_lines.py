"""The other end of pabench.conformance.alloc.process, for workers in another environment: standard library alone."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve(adapter: Any, written_for: str = "") -> None:
    """Answer questions with the methods of `adapter` until they end.

    With `written_for`, a version of an engine whose own signatures the adapter rests on, it is tried out first: where
    they are others by now, that is no fault of the engine's.

    Answers go to what was standard output; whatever else is printed there goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        op = question.pop("op")
        try:
            answer = {"ok": _hello(adapter, written_for) if op == "hello" else getattr(adapter, op)(**question)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _hello(adapter: Any, written_for: str) -> dict[str, Any]:
    if written_for:
        try:
            _try_out(adapter)
        except Exception as error:
            raise RuntimeError(f"found {adapter.describe()}; this worker is written for {written_for}, and cannot "
                               f"reach it: {type(error).__name__}: {error}") from error
    return {"describe": adapter.describe(), "capabilities": sorted(adapter.capabilities)}


def _try_out(adapter: Any) -> None:
    """One sequence, and one request of the scheduler where there is one, in a pool with room for either."""
    pool = {"num_blocks": 8, "block_size": 2, "max_tokens": 8, "caching": True, "window": None, "host_blocks": 0}
    adapter.reset(pool)
    adapter.allocate(0, [0, 1, 1], [])
    adapter.computed(0, 3)
    adapter.append(0, [1])
    adapter.block_table(0)
    adapter.num_free_blocks()
    adapter.free(0)
    if "scheduler" in adapter.capabilities:
        adapter.scheduler(pool, {"max_num_batched_tokens": 8, "max_num_seqs": 2})
        adapter.add(0, [0, 1, 1], 1)
        adapter.schedule()
        adapter.complete([[0, 1]])
