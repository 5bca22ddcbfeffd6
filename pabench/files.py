"""Files that users write: TOML read into a checked model, and one line that says what is wrong with it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pabench.engines.cleaning import clean
from pabench.errors import UsageError

_Model = TypeVar("_Model", bound=BaseModel)


def read_model(path: Path, model: type[_Model], what: str) -> _Model:
    """The TOML file `path` as a `model`. Raises UsageError of one line that names `what` it is and each wrong field."""
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{what} {path}: cannot be read as TOML: {error}") from None
    except ValidationError as error:
        raise UsageError(f"{what} {path}: {wrong_fields(error)}") from None
    except UsageError as error:  # of a validator
        raise UsageError(f"{what} {path}: {error}") from None


def wrong_fields(error: ValidationError, most: int | None = None) -> str:
    """Each wrong field, or the first `most`, what is wrong with it and, where it is a plain one, its value."""
    return "; ".join(_wrong(one) for one in error.errors()[:most])


def _wrong(one: ErrorDetails) -> str:
    value = one["input"]
    got = f", got {clean(repr(value), 80)}" if isinstance(value, str | int | float) else ""
    return f"{'.'.join(map(str, one['loc']))}: {one['msg']}{got}".removeprefix(": ")
