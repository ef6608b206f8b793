"""A verdict as JUnit XML, which every CI shows: a suite is a cell, a test is one thing of it that is gated.

So a test keeps its name from night to night (``dp2-ep2 compiled`` / ``device_work_s``) and a CI can tell since when it
fails. Numbers are properties of the suite, named ``METRIC.ratio`` and so on, for Jenkins' schema knows no properties of
a test. A regression is a failure, a cell without number in either arm an error; what was not judged is skipped, with
the reason, for that is no pass.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from xml.etree import ElementTree

from epbench.gate_records import CellVerdict, MetricChange, Verdict
from epbench.report.gate.words import changed_text, launches_text, limit_text, title_of, value_text, word_text
from epbench.report.text import UNKNOWN, clean, p_value

__all__ = ["junit_xml"]

_NAME, _MESSAGE = 200, 600  # characters
_NOT_XML = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2; no line breaks either
_NUMBERS = ("base", "head", "ratio", "ratio_low", "ratio_high", "p", "p_holm", "limit")
_Ending = Literal["failure", "error", "skipped"]


@dataclass(frozen=True)
class _Test:
    name: str
    ending: _Ending | None = None  # None: passed
    message: str = ""
    text: str = ""


def junit_xml(verdict: Verdict) -> bytes:
    """The document, UTF-8. Names and messages hold no character that XML forbids, and are cut at 200 and 600."""
    root = ElementTree.Element("testsuites", name=_safe(f"epbench gate: {verdict.scenario}", _NAME))
    for cell in verdict.cells:
        root.append(_suite(cell, _timestamp(verdict.head.started)))
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", "0")
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(cell: CellVerdict, timestamp: str | None) -> ElementTree.Element:
    tests = [_outcome(cell), *(_metric(cell, change) for change in cell.metrics if change.gated)]
    name = _safe(cell.name, _NAME) or UNKNOWN
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(tests)))
    for attribute, ending in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(test.ending == ending for test in tests)))
    suite.set("time", "0")
    if timestamp:
        suite.set("timestamp", timestamp)
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(cell):
        ElementTree.SubElement(properties, "property", name=_safe(key, _NAME), value=_safe(value, _MESSAGE))
    for test in tests:
        suite.append(_element(name, test))
    return suite


def _element(classname: str, test: _Test) -> ElementTree.Element:
    element = ElementTree.Element("testcase", classname=classname, name=_safe(test.name, _NAME), time="0")
    if test.ending is not None:
        ending = ElementTree.SubElement(element, test.ending, message=_safe(test.message, _MESSAGE))
        if test.ending != "skipped":
            ending.set("type", "regression" if test.ending == "failure" else "failing")
        ending.text = _safe(test.text, _MESSAGE) or None
    return element


def _outcome(cell: CellVerdict) -> _Test:
    """That the cell has a number, and could be compared."""
    endings: dict[str, _Ending] = {"broken": "failure", "failing": "error", "new": "skipped", "missing": "skipped"}
    by_numbers = any(change.gated and change.word == "inconclusive" for change in cell.metrics)
    ending = endings.get(cell.word) or ("skipped" if cell.word == "inconclusive" and not by_numbers else None)
    return _told(cell, _Test("outcome", ending, f"{cell.word}: {cell.why}"))


def _metric(cell: CellVerdict, change: MetricChange) -> _Test:
    endings: dict[str, _Ending] = {"regression": "failure", "inconclusive": "skipped"}
    unit = title_of(change.metric)
    message = f"{unit}: {changed_text(change)}, limit {limit_text(change)}"
    if change.word != "regression":
        message = f"{message}: {change.why or word_text(change)}"
    text = (
        f"base {value_text(change.metric, change.base)}, head {value_text(change.metric, change.head)}, "
        f"n={launches_text(change)}, p={p_value(change.p_holm if change.p_holm is not None else change.p)}"
    )
    return _told(cell, _Test(change.metric, endings.get(change.word), message, text))


def _told(cell: CellVerdict, test: _Test) -> _Test:
    """What a person has acknowledged fails nothing, and is no pass either."""
    if cell.acknowledged is None or test.ending != "failure":
        return test
    return _Test(test.name, "skipped", f"acknowledged: {clean(cell.acknowledged, 200)}; {test.message}", test.text)


def _properties(cell: CellVerdict) -> Iterator[tuple[str, str]]:
    yield "cell", cell.cell
    yield "verdict", cell.word
    yield from ((f"{arm}.outcome", outcome) for arm, outcome in _outcomes(cell) if outcome)
    for change in cell.metrics:
        values = ((key, getattr(change, key)) for key in _NUMBERS)
        yield from ((f"{change.metric}.{key}", repr(value)) for key, value in values if value is not None)
        yield f"{change.metric}.n", launches_text(change)


def _outcomes(cell: CellVerdict) -> tuple[tuple[str, str | None], ...]:
    return ("base", cell.base_outcome), ("head", cell.head_outcome)


def _safe(text: str, limit: int) -> str:
    return _NOT_XML.sub("\ufffd", clean(text, limit))


def _timestamp(started: str | None) -> str | None:
    """UTC without a zone, as the format has it; None if that is no time."""
    try:
        moment = datetime.fromisoformat(started or "")
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError):
        return None
