"""Stand-ins for three packages that SGLang imports and that have no CPU build: sgl_kernel, torchvision, torchaudio.

`install.py sglang` puts this file into SGLang's environment and has it imported at the start of Python. What SGLang
imports from them is then there; whoever calls it is told that it is a stub. A text model on a CPU calls none of it,
with `--attention-backend torch_native`: attention, norms and rotations are then PyTorch's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ABSENT = ("sgl_kernel", "torchvision", "torchaudio")


class Stub:
    """A name of an absent package; its attributes are stubs as well."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Stub:
        if name.startswith("__"):  # Python's own questions: whether it is an array, an iterable, a decorated function
            raise AttributeError(name)
        return Stub(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> None:
        """Nothing that a stub could do would be right."""
        raise NotImplementedError(f"{self.__name__} is a stub: the package has no CPU build")


class StubModule(ModuleType):
    """A module that has every name."""

    __version__ = "0.0"  # transformers compares it

    def __getattr__(self, name: str) -> Stub:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub(f"{self.__name__}.{name}")


class StubFinder(MetaPathFinder, Loader):
    """Finds the absent packages, and everything below them; a real one that is installed goes first."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None,
                  ) -> ModuleSpec | None:
        """A spec of a stub, where `fullname` belongs to an absent package."""
        if fullname.split(".")[0] not in ABSENT:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module that has every name."""
        return StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is executed."""


sys.meta_path.append(StubFinder())
