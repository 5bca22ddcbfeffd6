"""Every command's `--help` shows how it is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from pabench.cli import app
from pabench.commands.engines import _PRESETS
from pabench.probe import PRESETS
from tests.cli.conftest import Run

_OTHERS = ("serve", "simulate", "stub")  # their --help is that of another parser


def commands(group: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Whatever does something: subcommands, and groups that can be called without one."""
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        if not inner or command.invoke_without_command:
            yield (*above, name)
        if inner:
            yield from commands(command, *above, name)


COMMANDS = list(commands(typer.main.get_command(app)))


def test_all_commands_are_asked() -> None:
    assert {("gate",), ("gate", "run"), ("probe", "build"), ("conform",), ("serve",)} <= set(COMMANDS)


def test_all_presets_of_the_probe_are_named() -> None:
    """The command line lists them by itself: it helps before it imports numpy."""
    assert set(re.findall(r"\w+", _PRESETS.replace(" or ", " "))) == set(PRESETS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example(words: tuple[str, ...], pabench: Run) -> None:
    if words[0] in _OTHERS:
        text = pabench(*words, "--help").stdout
    else:
        text = CliRunner().invoke(app, [*words, "--help"]).stdout
    assert "example" in text.lower()
    assert f"pabench {' '.join(words)} " in " ".join(text.split())
