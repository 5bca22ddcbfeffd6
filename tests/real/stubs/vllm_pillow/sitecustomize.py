"""Lets vLLM serve LLaVA without torchvision, which has no CPU build: on PYTHONPATH, Python imports this first.

vLLM's model imports one function of a module of transformers that needs torchvision. Its twin that needs Pillow alone
takes its place; nothing else is changed, and images are read and scaled by Pillow.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

WANTED = "transformers.models.pixtral.image_processing_pixtral"
TWIN = "transformers.models.pixtral.image_processing_pil_pixtral"


class TwinFinder(MetaPathFinder, Loader):
    """Finds the twin under the other's name."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None,
                  ) -> ModuleSpec | None:
        """A spec for the one module."""
        return ModuleSpec(fullname, self) if fullname == WANTED else None

    def exec_module(self, module: ModuleType) -> None:
        """All that the twin has."""
        twin = vars(importlib.import_module(TWIN))
        vars(module).update({name: value for name, value in twin.items() if not name.startswith("__")})


sys.meta_path.insert(0, TwinFinder())
