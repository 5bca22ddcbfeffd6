"""Engines under test: one protocol (`base.py`), one small file a dialect, a client, doctor, launching.

What the package offers is imported when it is first asked for: the client brings aiohttp, and a command that only
checks a URL or a key (`address.py`, `keys.py`) need not wait for that.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pabench.engines.base import Dialect
    from pabench.engines.client import EngineClient
    from pabench.engines.dialects import DIALECTS, dialect
    from pabench.engines.doctor import Examination, examine
    from pabench.engines.launch import EngineProcess, free_port

__all__ = ["DIALECTS", "Dialect", "EngineClient", "EngineProcess", "Examination", "dialect", "examine", "free_port"]

_MODULES = {
    "DIALECTS": "dialects", "Dialect": "base", "EngineClient": "client", "EngineProcess": "launch",
    "Examination": "doctor", "dialect": "dialects", "examine": "doctor", "free_port": "launch",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
