"""`pabench matrix`: conformance results of many implementations side by side, as one offline HTML file or Markdown."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pabench
from pabench.conformance import load_results
from pabench.conformance.comparable import older_suites
from pabench.conformance.results import SPEC_VERSION
from pabench.conformance.verdicts import ASKED
from pabench.engines.cleaning import markdown, unlinked
from pabench.errors import UsageError
from pabench.report.build import check_out, render_template, write_atomic
from pabench.report.groups import Engine, SuiteData, sort_engines
from pabench.report.matrix import Failure, failures, matrices
from pabench.report.sources import VERDICTS_FILE, suite_label
from pabench.report.strip import Answer, conforming
from pabench.report.tables import Column, Table, table, words
from pabench.report.text import visible
from pabench.telemetry.vocabulary import UNKNOWN


@dataclass(frozen=True, slots=True)
class MatrixPage:
    """All that both forms show."""

    title: str
    built_at: str
    version: str
    spec_version: int
    engines: tuple[Engine, ...]
    conforming: tuple[tuple[Engine, Answer], ...]
    results: Table
    matrices: tuple[Table, ...]
    failures: tuple[Failure, ...]
    not_asked: Table | None


def write_matrix(results: Sequence[str], *, out: Path | None, markdown: Path | None) -> None:
    """Write the matrix of all `results`, each [NAME=]PATH, to the HTML file `out`, to `markdown`, or to both.

    A path is a verdicts.jsonl or a folder that holds some. Results of one name are one column. Raises UsageError for
    a path that holds none, a file that is not whole or of another version of the specification, for one case that two
    results of a column both tell of, and for results of two suites.
    """
    for path in (out, markdown):
        if path is not None:
            check_out(path)
    page = make_matrix(results)
    if out is not None:
        write_atomic(out, render_template("matrix.html.j2", page))
    if markdown is not None:
        write_atomic(markdown, matrix_markdown(page))


def make_matrix(results: Sequence[str]) -> MatrixPage:
    """The page of `results`. Raises UsageError as `write_matrix`."""
    suites = _once([each for named in results for each in _read(named)])
    if not suites:
        raise UsageError("got no results to set side by side; expected folders that `pabench conform` wrote")
    engines = sort_engines((), suites)
    for engine in engines:
        _check_told_once(engine)
    older = older_suites((suite.place, suite.results) for engine in engines for suite in engine.suites)
    return MatrixPage(
        title=" · ".join(visible(engine.name) for engine in engines),
        built_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=pabench.__version__,
        spec_version=SPEC_VERSION,
        engines=engines,
        conforming=tuple((engine, conforming(engine)) for engine in engines),
        results=_results_table(engines),
        matrices=tuple(matrices(engines, older)),
        failures=tuple(failures(engines)),
        not_asked=_not_asked(engines),
    )


def _read(named: str) -> list[tuple[str, SuiteData]]:
    """The results at or below a path, under the name given in front of it or the one that they tell; each behind the
    name that was given.
    """
    name, top = _split(named)
    if not top.exists():
        raise UsageError(f"{named}: there is no {top}; expected [NAME=]PATH of results of `pabench conform`")
    paths = sorted(top.rglob(VERDICTS_FILE)) if top.is_dir() else [top]
    if not paths:
        raise UsageError(f"{top} holds no {VERDICTS_FILE}: `pabench conform` writes them")
    found = []
    for each in paths:
        loaded = load_results(each)
        label = name or suite_label(each.resolve(), top.resolve(), loaded, [])
        found.append((name, SuiteData(label, loaded, str(each))))
    return found


def _split(named: str) -> tuple[str, Path]:
    """Name and path, which may both hold a "=": split where what is behind it exists, else at the first."""
    if Path(named).exists() or "=" not in named:
        return "", Path(named)
    words = named.split("=")
    splits = [("=".join(words[:at]), Path("=".join(words[at:]))) for at in range(1, len(words))]
    return next((split for split in splits if split[1].exists()), splits[0])


def _once(given: Sequence[tuple[str, SuiteData]]) -> list[SuiteData]:
    """A file that is reached twice counts once under a name; without one only where it is given none elsewhere."""
    named = {Path(suite.place).resolve() for name, suite in given if name}
    found: dict[tuple[str, Path], SuiteData] = {}
    for name, suite in given:
        path = Path(suite.place).resolve()
        if name or path not in named:
            found.setdefault((name, path), suite)
    return list(found.values())


def _check_told_once(engine: Engine) -> None:
    told: dict[str, str] = {}
    for suite in engine.suites:
        for row in suite.results.rows:
            if (before := told.setdefault(row.name, suite.place)) != suite.place:
                raise UsageError(f"{before} and {suite.place} both tell of {visible(row.name)} for "
                                 f"{visible(engine.name)!r}: name them apart, as NAME=PATH")


def _results_table(engines: Sequence[Engine]) -> Table:
    columns = [Column(key, title, numeric=False) for key, title in (
        ("implementation", "Implementation"), ("url", "At"), ("profile", "Profile"), ("seed", "Seed"),
        ("started", "Started"), ("status", "Ended"), ("pabench", "By pabench"), ("smoke", "First ring"))]
    rows = []
    for engine in engines:
        for suite in engine.suites:
            header, footer = suite.results.header, suite.results.footer
            at = header.url or str(header.engine.get("impl") or "")
            rows.append([words(text) for text in (
                engine.name, at, header.profile, str(header.seed), header.started, footer.status,
                header.pabench_version, header.smoke)])
    return table("results", "The runs of the suite", columns, rows)


def _not_asked(engines: Sequence[Engine]) -> Table | None:
    columns = [Column(key, title, numeric=False) for key, title in (
        ("case", "Case"), ("implementation", "Implementation"), ("outcome", "Outcome"), ("reason", "Reason"))]
    rows = [[words(row.name), words(engine.name, engine=engine.index), words(row.outcome), words(row.reason)]
            for engine in engines for suite in engine.suites for row in suite.results.rows
            if row.outcome not in ASKED]
    return table("not-asked", "Cases not asked, or not judged", columns, rows) if rows else None


# Markdown ------------------------------------------------------------------------------------------------------------


def matrix_markdown(page: MatrixPage) -> str:
    """The page as Markdown, for docs. What an engine supplied is escaped: it forms no markup."""
    lines = [f"Version {page.spec_version} of the specification, by pabench {page.version}. A cell: outcome, cases "
             "passed / asked / all.\n"]
    lines += [f"- **{_md(engine.name)}**: {answer.word}, {_md(answer.text)}" for engine, answer in page.conforming]
    for matrix in page.matrices:
        lines += [f"\n### {_md(matrix.caption.partition(':')[0])}\n", *_md_table(matrix)]
    if page.failures:
        lines.append("\n### Failures\n")
        for failure in page.failures:
            lines += _md_failure(failure)
    if page.not_asked is not None:
        lines += [f"\n### {_md(page.not_asked.caption)}\n", *_md_table(page.not_asked)]
    return "\n".join(lines) + "\n"


def _md_table(shown: Table) -> Iterator[str]:
    yield "| " + " | ".join(_md(column.title) for column in shown.columns) + " |"
    yield "|" + " --- |" * len(shown.columns)
    for row in shown.rows:
        yield "| " + " | ".join(_md(cell.text) or UNKNOWN for cell in row) + " |"


def _md_failure(failure: Failure) -> Iterator[str]:
    """Folded up: GitHub reads the tags, and the text between `pre` as HTML."""
    yield (f"<details><summary>{failure.outcome} {html.escape(visible(failure.name))}, "
           f"{unlinked(html.escape(visible(failure.engine.name)))}</summary>\n")
    # Lines without text would end the block of HTML, and with it the escaping.
    text = "\n".join(line or " " for line in (failure.text or failure.reason).splitlines())
    yield f"<pre>{html.escape(text)}</pre>\n</details>\n"


def _md(text: str) -> str:
    return markdown(visible(text))
