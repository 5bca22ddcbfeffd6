"""Errors as a client sees them."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer in OpenAI's shape of an error. `param` names the field at fault."""

    def __init__(self, status: int, message: str, *, param: str | None = None, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.kind = status, message, param, kind

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}
