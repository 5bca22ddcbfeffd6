"""One offline HTML file out of result folders."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pabench.errors import PabenchError, UsageError
from pabench.report.sources import read_sources
from pabench.report.text import count, ratio, visible
from pabench.report.versus import ONE_RUN
from pabench.report.view import Page, make_page

_HERE = Path(__file__).resolve().parent


def write_report(dirs: Sequence[Path], out: Path) -> None:
    """Write the report of all runs and conformance results at or below `dirs` to `out`, whole or not at all.

    Raises UsageError when there is nothing to show or `out` cannot be a file, PabenchError when it cannot be written.
    """
    check_out(out)
    write_atomic(out, render(make_page(read_sources(dirs))))


def check_out(out: Path) -> None:
    """Raise UsageError unless a file can be written as `out`: asked before any work."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder; expected the name of the file to write")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out.parent} is no folder; make it first, or name another file")


def render(page: Page) -> str:
    """The HTML text of `page`."""
    scripts = {"plotly": plotly(), "script": _asset("script.js")}
    figures = {figure.id: figure.spec for figure in page.all_figures()}
    return render_template("template.html.j2", page, scripts, figures=json_in_html(figures),
                           one_run=Markup(ratio(ONE_RUN)))


def render_template(name: str, page: object, scripts: Mapping[str, str] | None = None, **values: Markup) -> str:
    """Template `name` with `page`, the style, and `scripts` by name: the only ones that its policy lets run."""
    scripts = scripts or {}
    return _environment().get_template(name).render(
        page=page,
        policy=_policy(scripts.values()),
        style=Markup(_asset("style.css")),
        **{name: Markup(text) for name, text in scripts.items()},
        **values,
    )


def json_in_html(value: object) -> Markup:
    """JSON that no HTML parser mistakes for a tag or a comment: `<`, `>` and `&` stand as escapes in it."""
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(scripts: Iterable[str]) -> str:
    """A policy that forbids all network, and every script but `scripts`."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "count": count}
    return environment


@cache
def plotly() -> str:
    """plotly.js as plotly ships it, without a pointer to a source map."""
    lines = get_plotlyjs().replace("\r\n", "\n").split("\n")
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL="))


@cache
def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def write_atomic(out: Path, text: str) -> None:
    """Write `text` whole or not at all. Raises PabenchError when it cannot be written."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".part", dir=out.absolute().parent)
    except OSError as error:
        raise PabenchError(f"cannot write {out}: {error.strerror}") from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        part.chmod(0o644)
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PabenchError(f"cannot write {out}: {error.strerror}; make room, or name another file") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
