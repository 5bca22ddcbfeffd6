"""The reference engine with one fault in it, served or asked in process.

    python suites/mutants/host.py NAME -- --model probe                serve it
    python suites/mutants/host.py NAME --impl reference-paged --out x  ask its allocator the allocator level

A mutant is a file beside this one, named after the entry of the bug catalogue that it is modelled on (hyphens as
underscores; `__` and a word where an entry has several). It states

    BUG          the entry
    MUST_FAIL    ids of the requirements that have to notice, of any level
    ENGINE_ARGS  how the reference engine must be started for the fault to matter (http)
    IMPL         level -> the implementation that the fault is in, where it is not the one in DEFAULT_IMPL
    apply()      put the fault in

Without a NAME it lists all mutants. A conformance suite that passes one of them proves nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
DEFAULT_IMPL = {"alloc": "reference-paged", "kernel": "paged-torch"}  # level -> what a fault is put into, and asked as


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


def conform(
    name: str | None, impl: str, *, out: Path, profile: str = "ci", ids: Sequence[str] = (), seed: int = 0
) -> int:
    """Ask an implementation in process, with the fault or without any (None), the requirements of its level.

    In this process, which is changed for good by it: call it in one that ends thereafter. Exit codes as `pabench
    conform` has them; results in `out`.
    """
    from pabench.conformance.runner import asked_options, run_here

    if name is not None:
        load(name).apply()
    return run_here(["--pabench-impl", impl, *asked_options(out, profile, seed, ids)])


def impl_of(mutant: ModuleType, level: str) -> str:
    """What to ask a mutant's fault of at a level in process."""
    return getattr(mutant, "IMPL", {}).get(level, DEFAULT_IMPL[level])


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    if not argv:
        for name in names():
            print(f"{name}: {(load(name).__doc__ or '').splitlines()[0]}")
        return 0
    name, *rest = argv
    if "--impl" in rest:
        parser = argparse.ArgumentParser(prog=f"host.py {name}")
        parser.add_argument("--impl", required=True)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--profile", default="ci")
        parser.add_argument("--id", action="append", default=[], dest="ids")
        parser.add_argument("--seed", type=int, default=0)
        return conform(name, **vars(parser.parse_args(rest)))
    return serve(name, rest[1:] if rest[:1] == ["--"] else rest)


if __name__ == "__main__":
    sys.path[:0] = [str(_HERE.parents[1]), str(_HERE.parents[1] / "kernels")]
    sys.exit(main(sys.argv[1:]))
