"""docs/requirements.md, made from suites/requirements.toml, suites/bugs.toml and the mutants.

    python -m pabench.conformance.page              # write docs/requirements.md
    python -m pabench.conformance.page other.md     # or another file

A test holds the committed page to what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pabench.conformance.bugs import Bug, load_bugs
from pabench.conformance.levels import SUITE_LEVELS
from pabench.conformance.mutants import Mutant, load_mutants
from pabench.conformance.registry import LEVELS, Registry, Requirement, load_registry
from pabench.pages import table, write_page

PAGE = Path("docs/requirements.md")
_TITLES = {
    "kernel": "kernel: paged attention, cache write, block copy",
    "alloc": "alloc: a block manager, driven by traces of operations",
    "http": "http: a server at a URL",
}
_HEAD = """# Requirements

What an engine with a paged KV cache must do: version {version} of the specification, {count} requirements.
`python -m pabench.conformance.page` makes this page of `suites/requirements.toml`, `suites/bugs.toml` and the mutants;
[conformance.md](conformance.md) tells how they are asked.
"""


def requirements_page(
    registry: Registry | None = None, bugs: Mapping[str, Bug] | None = None, mutants: Mapping[str, Mutant] | None = None
) -> str:
    """The page as Markdown; by default of what ships with pabench."""
    registry = registry or load_registry()
    bugs = bugs or load_bugs()
    mutants = mutants or load_mutants()
    lines = [_HEAD.format(version=registry.spec_version, count=len(registry))]
    for level in SUITE_LEVELS:
        of_level = [registry[each] for each in registry if each.startswith(f"{level}/")]
        if of_level:
            lines += _level(level, of_level, bugs, mutants)
    lines += _catalogue(bugs, mutants, registry)
    return "\n".join(lines) + "\n"


def _level(
    level: str, requirements: list[Requirement], bugs: Mapping[str, Bug], mutants: Mapping[str, Mutant]
) -> Iterator[str]:
    counts = {grade: sum(each.level == grade for each in requirements) for grade in LEVELS}
    told = ", ".join(f"{count} {grade}" for grade, count in counts.items() if count)
    yield f"## {_TITLES[level]}\n\n{told}.\n"
    yield from table(("requirement", "level", "asks"), (
        (_link(each.id), each.level, each.text) for each in requirements
    ))
    yield ""
    for requirement in requirements:
        yield from _requirement(requirement, bugs, mutants)


def _requirement(
    requirement: Requirement, bugs: Mapping[str, Bug], mutants: Mapping[str, Mutant]
) -> Iterator[str]:
    yield f"### {requirement.id}\n"
    yield f"**{requirement.level}**, since {requirement.since}. {requirement.text}\n"
    yield f"Why: {requirement.why}\n"
    if requirement.needs:
        yield f"Needs: {', '.join(requirement.needs)}.\n"
    if requirement.bugs:
        yield "Would have caught:\n"
        yield "\n".join(_bug(bugs[bug]) for bug in requirement.bugs) + "\n"
    proven = [mutant for mutant in mutants.values() if requirement.id in mutant.must_fail]
    if proven:
        yield "Failed by the mutants:\n"
        yield "\n".join(f"- {_mutant(mutant)}: {mutant.text}" for mutant in proven) + "\n"


def _link(requirement: str) -> str:
    """To its heading, as GitHub names it."""
    return f"[{requirement}](#{requirement.replace('/', '')})"


def _bug(bug: Bug) -> str:
    return f"- `{bug.id}` ({bug.engine}: {bug.reference}): {bug.fault}"


def _mutant(mutant: Mutant) -> str:
    return f"[{mutant.name}](../suites/mutants/{mutant.name}.py)"


def _catalogue(bugs: Mapping[str, Bug], mutants: Mapping[str, Mutant], registry: Registry) -> Iterator[str]:
    modelled: dict[str, list[Mutant]] = {}
    for mutant in mutants.values():
        modelled.setdefault(mutant.bug, []).append(mutant)
    yield "## The bugs, and their mutants\n"
    yield (f"{len(bugs)} bugs that engines and kernels really had; {len(modelled)} of them have mutants. Level: the "
           "cheapest at which the bug shows (engine: a whole engine in one process, which the suite asks over HTTP). "
           "HTTP: whether a client sees it with an ordinary model.\n")
    hidden = [bug for bug in bugs.values() if bug.not_shown]
    yield (f"A bug has to show at its level, and over HTTP where a client sees it: {len(hidden)} cannot, in this "
           "suite, at one of the two.\n")
    yield from table(("bug", "not at", "because"), (
        (f"`{bug.id}`", bug.not_shown, bug.not_shown_why) for bug in hidden
    ))
    yield ""
    yield from table(("bug", "engine", "level", "HTTP", "asked by", "mutants"), (
        (f"`{bug.id}`", f"{bug.engine}: {bug.reference}", bug.level, bug.http,
         ", ".join(_link(each) for each in registry if bug.id in registry[each].bugs) or "–",
         ", ".join(map(_mutant, modelled.get(bug.id, ()))) or f"none. {bug.no_mutant}") for bug in bugs.values()
    ))


def main(argv: list[str]) -> int:
    """Write the page."""
    return write_page("pabench.conformance.page", requirements_page, PAGE, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
