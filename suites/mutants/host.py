"""Serve the reference engine with one fault in it: `python suites/mutants/host.py NAME -- <reference_engine args>`.

A mutant is a file beside this one, named after the entry of the bug catalogue that it is modelled on (hyphens as
underscores; `__` and a word where an entry has several). It states

    BUG          the entry
    MUST_FAIL    ids of the requirements that have to notice
    ENGINE_ARGS  how the reference engine must be started for the fault to matter
    apply()      put the fault in

Without a NAME it lists all mutants. A conformance suite that passes one of them proves nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """All mutants."""
    return sorted(path.stem for path in _HERE.glob("*.py") if path.stem != "host")


def load(name: str) -> ModuleType:
    """The module of a mutant. Raises SystemExit with the known names."""
    path = _HERE / f"{name}.py"
    if name not in names():
        raise SystemExit(f"error: unknown mutant {name!r}, expected one of {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"pabench_mutant_{name}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def serve(name: str | None, engine_args: Sequence[str]) -> int:
    """Serve with the fault, or without any (None), until told to stop."""
    from reference_engine.__main__ import main as reference_engine

    if name is not None:
        load(name).apply()
    return reference_engine(list(engine_args))


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    if not argv:
        for name in names():
            print(f"{name}: {(load(name).__doc__ or '').splitlines()[0]}")
        return 0
    name, *rest = argv
    return serve(name, rest[1:] if rest[:1] == ["--"] else rest)


if __name__ == "__main__":
    sys.path[:0] = [str(_HERE.parents[1]), str(_HERE.parents[1] / "kernels")]
    sys.exit(main(sys.argv[1:]))
