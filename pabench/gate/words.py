"""A gate's decision in the forms that people and machines read: terminal, Markdown, JUnit, JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import orjson
from rich import box
from rich.table import Table
from rich.text import Text

from pabench.engines.answer_json import encodable
from pabench.engines.cleaning import WHOLE, clean, markdown
from pabench.gate.decide import INCONCLUSIVE, OPEN, PASS, SAME, WATCHED, WORSE, Decision, MetricVerdict, change_text
from pabench.gate.evidence import CONFORMANCE
from pabench.load.records import write_atomic

JSON_FILE, MARKDOWN_FILE, JUNIT_FILE = "gate.json", "gate.md", "junit.xml"
_COLUMNS = ("load", "metric", "baseline", "candidate", "change (95 %)", "pairs", "verdict")
_LEFT = ("load", "metric", "verdict")
_STYLE = {SAME: "green", WORSE: "bold red", OPEN: "yellow", WATCHED: "dim"}


def write_decision(decision: Decision, folder: Path) -> None:
    """Write gate.json, gate.md and junit.xml. Raises RecordsUnwritable."""
    write_atomic(folder / JSON_FILE, decision_json(decision))
    write_atomic(folder / MARKDOWN_FILE, decision_markdown(decision).encode(errors="replace"))
    write_atomic(folder / JUNIT_FILE, decision_junit(decision))


def decision_json(decision: Decision) -> bytes:
    """All of it; an interval's infinite end is null."""
    told = {"schema_version": 1, "exit_code": decision.exit_code, "more_pairs": decision.more,
            "advice": advice(decision), **asdict(decision)}
    return orjson.dumps(encodable(told), option=orjson.OPT_INDENT_2)  # a path's name may be no UTF-8


def decision_table(decision: Decision) -> Table:
    """For the terminal; a load that is the only one is the title."""
    loads = {each.load for each in decision.metrics}
    first = 1 if len(loads) == 1 else 0
    table = Table(title=Text(clean(loads.pop())) if first else None, title_justify="left", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0))
    for name in _COLUMNS[first:]:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for each in decision.metrics:
        *cells, verdict = _row(each)[first:]
        table.add_row(*(Text(clean(cell)) for cell in cells), Text(verdict, _STYLE[each.outcome]))
    return table


def decision_markdown(decision: Decision) -> str:
    """For a pull request."""
    lines = [f"## pabench gate: {decision.outcome}", ""]
    lines += [f"- **{markdown(failure)}**" for failure in decision.failures]
    if decision.metrics:
        lines += [f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
        lines += [f"| {' | '.join(markdown(cell) for cell in _row(each))} |" for each in decision.metrics]
    lines += ["", advice(decision)]
    lines += [f"- {markdown(note)}" for note in decision.notes]
    return "\n".join(lines) + "\n"


def decision_junit(decision: Decision) -> bytes:
    """One test case a figure, one a sure failure, one a doubt. What is undecided is an error, not a pass."""
    num_tests = len(decision.metrics) + len(decision.failures) + len(decision.doubts)
    suite = ElementTree.Element("testsuite", name="pabench gate", tests=str(num_tests))
    counts = dict.fromkeys(("failures", "errors", "skipped"), 0)
    for failure in decision.failures:
        _case(suite, counts, "sure failures", failure, ("failures", "failure"), failure)
    for doubt in decision.doubts:
        _case(suite, counts, "doubts", doubt, ("errors", "error"), doubt)
    kinds = {WORSE: ("failures", "failure"), OPEN: ("errors", "error"), WATCHED: ("skipped", "skipped"), SAME: None}
    for each in decision.metrics:
        _case(suite, counts, each.load, each.metric, kinds[each.outcome], ", ".join(_row(each)[2:]))
    suite.attrib |= {name: str(count) for name, count in counts.items()}
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def advice(decision: Decision) -> str:
    """The decision in a sentence, and what to do."""
    if decision.failures:
        return "Failed, whatever the figures."
    if decision.outcome == PASS:
        return "No figure got worse by as much as matters."
    if decision.outcome == INCONCLUSIVE and not any(each.outcome == OPEN for each in decision.metrics):
        doubt = "Cannot tell: no figure got worse, but the notes name what is in doubt."
        suite = all(each.startswith(CONFORMANCE) for each in decision.doubts)
        return f"{doubt} {'Have both asked for it: no pair of runs tells.' if suite else 'More pairs of runs tell.'}"
    if decision.outcome == INCONCLUSIVE:
        more = decision.more
        if more is None:
            return "Cannot tell, and with this noise no number of runs within reach will: make the runs longer."
        return f"Cannot tell yet: about {more} more pairs of runs should do, or longer runs."
    worse = [each for each in decision.metrics if each.outcome == WORSE]
    return "Worse: " + ", ".join(f"{each.metric} {change_text(each.ratio)}" for each in worse) + "."


def _row(each: MetricVerdict) -> tuple[str, ...]:
    more = "" if each.more is None else f", {each.more} more pairs"
    interval = "" if each.low == 0 else f" ({100 * (each.low - 1):+.1f}…{100 * (each.high - 1):+.1f})"
    return (each.load, each.metric, f"{each.baseline:,.4g}", f"{each.candidate:,.4g}",
            change_text(each.ratio) + interval, str(each.count), each.outcome + more)


def _case(
    suite: ElementTree.Element, counts: dict[str, int], group: str, name: str, kind: tuple[str, str] | None, text: str
) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=clean(group), name=clean(name, WHOLE))
    if kind is not None:
        counts[kind[0]] += 1
        ElementTree.SubElement(case, kind[1], message=clean(text, WHOLE))
