"""The cache of transformers' continuous batching, in the environment that PABENCH_TRANSFORMERS_PYTHON names."""

from __future__ import annotations

import os
from pathlib import Path

from pabench.conformance.alloc.process import ProcessAdapter
from pabench.errors import UsageError

VARIABLE = "PABENCH_TRANSFORMERS_PYTHON"


def adapter() -> ProcessAdapter:
    """The adapter `transformers-blocks`. Raises UsageError where there is no such environment."""
    python = os.environ.get(VARIABLE)
    if python is None:
        raise UsageError(f"transformers-blocks needs the Python of an environment with transformers: name it in {VARIABLE}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return ProcessAdapter([python, str(Path(__file__).with_name("transformers_worker.py"))], env=environment)
