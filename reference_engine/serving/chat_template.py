"""Chat templates: programs in a sandbox, with what transformers gives them beside the messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pabench.errors import UsageError


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: marks the assistant's words for training, and changes no text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a set

    def parse(self, parser: Parser) -> nodes.Node:
        """The words between the two."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def render(
    template: str, messages: list[dict[str, Any]], special_tokens: Mapping[str, str], *, add_generation_prompt: bool
) -> str:
    """The conversation as the template writes it. Raises UsageError where it cannot."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.globals["raise_exception"] = _raise_template_error
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
            **special_tokens)
    except Exception as error:  # it is a program: it may divide by zero, or recurse for ever
        raise UsageError(f"the model's chat template refuses these messages: {error}") from error


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)
