"""Engines under test: one protocol (`base.py`), one small file a dialect, a client, launching."""

from __future__ import annotations

from collections.abc import Mapping

from pabench.engines.base import Dialect
from pabench.engines.client import EngineClient
from pabench.engines.launch import EngineProcess, free_port
from pabench.engines.openai import OpenAIDialect
from pabench.engines.reference import ReferenceDialect
from pabench.engines.transformers import TransformersDialect
from pabench.engines.vllm import VLLMDialect
from pabench.errors import UsageError

# In the order in which `doctor` tries to recognise them: the plainest last.
DIALECTS: Mapping[str, Dialect] = {
    known.name: known for known in (ReferenceDialect(), VLLMDialect(), TransformersDialect(), OpenAIDialect())
}


def dialect(name: str) -> Dialect:
    """The dialect called `name`. Raises UsageError that lists the known ones."""
    if name not in DIALECTS:
        raise UsageError(f"unknown dialect {name!r}: expected one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


__all__ = ["DIALECTS", "Dialect", "EngineClient", "EngineProcess", "dialect", "free_port"]
