"""Adapters of implementations in process, found by their names.

    pabench conform --impl vllm-blocks                 an adapter that ships: suites/adapters
    pabench conform --impl acme.testing:allocator      a factory in a module
    pabench conform --impl acme/adapter.py:allocator   a factory in a file

A factory takes nothing and returns an adapter: an object with the methods of its level's protocol (levels.py), and

    capabilities                 what it has beyond the least, from the vocabulary of its level
    describe() -> str            what really runs: names, versions
    unsupported(case) -> list    reasons why a case cannot be asked of it; none: it can
    close()                      if it has one: at the end of the run
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pabench.engines.cleaning import clean
from pabench.errors import UsageError
from pabench.resources import data_dir

# Name -> factory. Files lie in suites/adapters: pabench itself imports no engine.
SHIPPED = {
    "reference-paged": "reference.py:paged",
    "reference-contiguous": "reference.py:contiguous",
    "vllm-blocks": "elsewhere.py:vllm",
    "transformers-blocks": "elsewhere.py:transformers",
    "paged-torch": "paged.py:in_torch",
    "paged-triton": "paged.py:in_triton",
    "paged-numba": "paged.py:in_numba",
    "flex-attention": "flex.py:eager",
    "flashinfer": "flashinfer.py:paged",
    "flash-attention": "flash_attention.py:paged",
}


def check_name(named: str) -> None:
    """Raise UsageError unless `named` is a name that ships or looks like a factory. Imports nothing."""
    where, colon, factory = SHIPPED.get(named, named).rpartition(":")
    if not colon or not where or not factory.isidentifier():
        raise UsageError(f"--impl is {named!r}, expected one of {', '.join(SHIPPED)}, or package.module:factory, or "
                         "path/to/file.py:factory")
    if named not in SHIPPED and where.endswith(".py") and not Path(where).is_file():
        raise UsageError(f"--impl is {named!r}, but there is no file {where}")


def make_adapter(named: str) -> Any:
    """The adapter that `named` makes. Raises UsageError when there is none to be had."""
    check_name(named)
    where, _, factory_name = SHIPPED.get(named, named).rpartition(":")
    try:
        module = _module(data_dir("suites") / "adapters" / where if named in SHIPPED else where)
        factory: Callable[[], Any] = getattr(module, factory_name)
        return factory()
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--impl {named} makes no adapter: {type(error).__name__}: {clean(str(error))}") from error


def _module(where: str | Path) -> ModuleType:
    path = Path(where)
    if path.suffix != ".py":
        sys.path.insert(0, "")  # pytest, unlike `python -m`, does not look here
        try:
            return importlib.import_module(str(where))
        finally:
            sys.path.remove("")
    # A name of its own: vllm.py must not stand in the way of vllm.
    spec = importlib.util.spec_from_file_location(f"pabench_adapter_{path.stem}", path)
    assert spec is not None, "a file that ends in .py has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
