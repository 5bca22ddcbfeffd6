"""The mutants in suites/mutants, as their files state them; and how they put a fault into our kernels.

A mutant changes the reference engine, so running one needs torch; what it states are plain constants, and reading
those needs nothing:

    BUG          the entry of suites/bugs.toml that it is modelled on
    MUST_FAIL    ids of the requirements that have to notice
    ENGINE_ARGS  how the reference engine must be started for the fault to matter
"""

from __future__ import annotations

import ast
import atexit
import importlib.util
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pabench.errors import UsageError
from pabench.resources import data_dir

_STATED = ("BUG", "MUST_FAIL", "ENGINE_ARGS")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One deliberately broken engine. `text`: its fault, the first line of its docstring."""

    name: str
    bug: str
    must_fail: tuple[str, ...]
    engine_args: tuple[str, ...]
    text: str

    def owes(self, level: str) -> tuple[str, ...]:
        """The requirements of `level` ("http") that have to notice it."""
        return tuple(each for each in self.must_fail if each.startswith(f"{level}/"))


def load_mutants(folder: Path | None = None) -> dict[str, Mutant]:
    """All mutants by name, by default those that ship with pabench. Raises UsageError for a file that is none."""
    folder = folder or data_dir("suites") / "mutants"
    paths = sorted(path for path in folder.glob("*.py") if path.stem not in ("host", "__init__"))
    return {path.stem: _read(path) for path in paths}


def _read(path: Path) -> Mutant:
    module = ast.parse(path.read_text(encoding="utf-8"), str(path))
    stated: dict[str, Any] = {}
    for node in module.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in _STATED:
            try:
                stated[target.id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError as error:
                raise UsageError(f"{path}: {target.id} must be written out, without calls or names") from error
    if missing := [name for name in _STATED if name not in stated]:
        raise UsageError(f"{path} is no mutant: it lacks {', '.join(missing)}")
    text = (ast.get_docstring(module) or "").partition("\n")[0]
    return Mutant(path.stem, stated["BUG"], tuple(stated["MUST_FAIL"]), tuple(stated["ENGINE_ARGS"]), text)


def rewrite_kernels(file: str, *changes: tuple[str, str]) -> None:
    """From now on `import paged_kernels` gives a copy whose `file` has each (old, new) of its source replaced.

    For `apply` of a mutant: Triton and numba compile from source, which a function put in place of another would not
    reach. Modules of the package that are there already are forgotten, so it comes before what uses them is imported.
    Raises ValueError where `old` is not there exactly once: the kernel has changed, and the mutant has to as well.
    """
    spec = importlib.util.find_spec("paged_kernels")
    if spec is None or spec.origin is None:
        raise ValueError("there is no package paged_kernels to put a fault into")
    folder = Path(tempfile.mkdtemp(prefix="pabench-mutant-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = Path(shutil.copytree(Path(spec.origin).parent, folder / "paged_kernels",
                                   ignore=shutil.ignore_patterns("__pycache__")))
    source = (package / file).read_text(encoding="utf-8")
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{file} has {source.count(old)} times {old!r}, expected once: look what became of it")
        source = source.replace(old, new)
    (package / file).write_text(source, encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == "paged_kernels"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
