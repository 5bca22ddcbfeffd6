"""Block managers of engines that live in environments of their own, as adapters of the allocator level.

    adapter              environment variable that names its Python    worker
    vllm-blocks          PABENCH_VLLM_PYTHON                           vllm_worker.py
    transformers-blocks  PABENCH_TRANSFORMERS_PYTHON                   transformers_worker.py
"""

from __future__ import annotations

import os
from pathlib import Path

from pabench.conformance.alloc.process import ProcessAdapter
from pabench.errors import UsageError


def vllm() -> ProcessAdapter:
    """vLLM's KV cache manager. Raises UsageError where there is no such environment."""
    return _worker("vllm")


def transformers() -> ProcessAdapter:
    """The cache of transformers' continuous batching. Raises UsageError where there is no such environment."""
    return _worker("transformers")


def _worker(engine: str) -> ProcessAdapter:
    variable = f"PABENCH_{engine.upper()}_PYTHON"
    python = os.environ.get(variable)
    if python is None:
        raise UsageError(f"{engine}-blocks needs the Python of an environment with {engine}: name it in {variable}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return ProcessAdapter([python, str(Path(__file__).with_name(f"{engine}_worker.py"))], env=environment)
