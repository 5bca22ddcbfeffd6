"""The other end of pabench.conformance.alloc.process, for workers in another environment: standard library alone."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve(adapter: Any) -> None:
    """Answer questions with the methods of `adapter` until they end.

    Answers go to what was standard output; whatever else is printed there goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        op = question.pop("op")
        try:
            answer = {"ok": _hello(adapter) if op == "hello" else getattr(adapter, op)(**question)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _hello(adapter: Any) -> dict[str, Any]:
    return {"describe": adapter.describe(), "capabilities": sorted(adapter.capabilities)}
