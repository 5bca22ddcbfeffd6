"""Engines under test: one protocol (`base.py`), one small file a dialect, a client, doctor, launching."""

from pabench.engines.base import Dialect
from pabench.engines.client import EngineClient
from pabench.engines.dialects import DIALECTS, dialect
from pabench.engines.doctor import Examination, examine
from pabench.engines.launch import EngineProcess, free_port

__all__ = ["DIALECTS", "Dialect", "EngineClient", "EngineProcess", "Examination", "dialect", "examine", "free_port"]
