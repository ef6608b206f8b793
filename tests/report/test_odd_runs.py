"""Runs that no brochure shows give a sensible page each: failures only, one launch, a CPU, records with holes."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from epbench.report.build import build_html
from tests.report.gallery import RUNS, hostile_run
from tests.report.sample import HOSTILE

VOID = {"meta", "br", "input", "img", "link", "hr", "wbr"}
ODD_NAME = f"{HOSTILE} \u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 " + "x" * 10_000

SAYS = {
    "only-failures": ["No cell has a number (1 oom, 1 crashed", "No cell has a step time", "no progress for 300 s"],
    "one-cell": ["Only dp4-ep4 compiled has a number", "nothing to compare it with"],
    "one-launch": ["an interval needs 3 valid launches", "No cell has two launches with a step time"],
    "cpu-only": ["They say nothing about the performance of GPUs", "tokens/s per rank"],
    "missing-fields": ["other.module:build", "cannot be told apart|is fastest", "not verified"],
    "unfinished": ["HW thermal slowdown", "2 not run", "1 interrupted", "cut off or is still running"],
    "no-cells": ["This run has no cells."],
}


class Page(HTMLParser):
    """What stands where on a page: the text of each section, the tags in it, and what is packed in scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tags: dict[str, list[str]] = {}
        self.attributes: set[str] = set()
        self._at: list[tuple[str, str]] = [("", "")]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.setdefault(self._at[-1][1], []).append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in {"section", "script", "style"}:
            self._at.append((tag, dict(attrs).get("id") or tag))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._at[-1][0]:
            self._at.pop()

    def handle_data(self, data: str) -> None:
        where = self._at[-1][1]
        self.texts[where] = self.texts.get(where, "") + data

    @property
    def text(self) -> str:
        """What a reader sees without a script."""
        return " ".join(text for name, text in self.texts.items() if not self._is_code(name))

    @property
    def sections(self) -> list[str]:
        return [name for name in self.tags if name and not self._is_code(name)]

    def figures(self) -> Iterator[dict[str, Any]]:
        """Every figure of every chart, all variants."""
        for name, text in self.texts.items():
            if name.startswith("figures-"):
                yield from json.loads(gzip.decompress(base64.b64decode(text)))

    @staticmethod
    def _is_code(name: str) -> bool:
        return name in {"script", "style", "data", "plotly", "speeds"} or name.startswith("figures-")


def sensible(page: Page) -> list[str]:
    """What is wrong with a page of any run whatever."""
    wrong = [f"{word!r} is no word for people" for word in re.findall(r"\b(?:None|nan|inf|NaN)\b", page.text)]
    for name in page.sections:
        if not {"figure", "table", "dl", "p"} & set(page.tags[name]):
            wrong.append(f"section {name} is empty")
    for figure in page.figures():
        if not any(_has_points(trace) for trace in figure["data"]):
            wrong.append(f"an empty chart: {figure['layout'].get('xaxis')}")
        wrong += [f"no title on {name}: {axis}" for name, axis in _axes(figure) if not _is_told(axis)]
    return wrong


def _has_points(trace: dict[str, Any]) -> bool:
    values = trace.get("z") or trace.get("x") or []
    return len(values) > 0


def _axes(figure: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((name, axis) for name, axis in figure["layout"].items() if re.fullmatch(r"[xy]axis\d*", name))


def _is_told(axis: dict[str, Any]) -> bool:
    """By a title, or by names instead of numbers; an axis that is not shown, or repeats another's, needs neither."""
    hidden = axis.get("visible") is False or axis.get("showticklabels") is False or "matches" in axis
    return hidden or bool(axis.get("title", {}).get("text")) or "ticktext" in axis


@pytest.mark.parametrize("name", SAYS)
def test_the_page_is_sensible_and_says_what_happened(name: str) -> None:
    page = Page(build_html(RUNS[name]()))
    missing = [text for text in SAYS[name] if not re.search(text if "|" in text else re.escape(text), page.text)]
    assert sensible(page) + missing == []


def test_odd_names_everywhere_stay_text() -> None:
    html = build_html(hostile_run(ODD_NAME))
    page, usual = Page(html), Page(build_html(RUNS["one-launch"]()))
    tags = {tag for own in page.tags.values() for tag in own}
    assert tags <= {tag for own in usual.tags.values() for tag in own} | {"figcaption", "strong"}
    assert not any(name.startswith("on") for name in page.attributes)
    assert not set("\u202e\u2028\u2029") & set(html)
    assert not set("<>\u202e\u2028") & set(re.sub(r"</?(?:br|b|i|sup|sub|extra)/?>", "", _drawn(page)))
    assert max(map(len, re.split(r"[\s<>]", page.text))) < 2500
    assert sensible(page) == []


def _drawn(page: Page) -> str:
    """All that plotly reads, which takes some tags for its own; ``meta`` is for the page's script, which sets text."""
    figures = list(page.figures())
    for figure in figures:
        figure["layout"].pop("meta", None)
    return json.dumps(figures, ensure_ascii=False)
