"""A run as markdown: the page's words, and nothing that a forge would read as more than words."""

import re

from epbench.report.comparison import Compared
from epbench.report.findings import findings
from epbench.report.markdown import escaped, markdown_report
from epbench.report.runs import compared_runs
from epbench.report.verdict import verdicts
from tests.report.sample import HOSTILE, sample_view, view_of
from tests.report.test_runs import three_runs


def test_it_says_what_the_page_says_in_its_order() -> None:
    view = sample_view()
    text = markdown_report(view)
    compared = Compared.of(view)
    places = [text.index(escaped(verdict.text)) for verdict in verdicts(compared)]
    places += [text.index(f"- {escaped(finding.text)}") for finding in findings(compared)]
    assert places == sorted(places)
    assert text.index("| verdict | layout |") > max(places)


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    lines = [line for line in markdown_report(sample_view()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 16
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_what_changed_stands_between_findings_and_cells() -> None:
    runs = three_runs()
    text = markdown_report(runs[-1], changes=compared_runs(runs))
    assert text.index("### Compared with monday") < text.index("What else differs") < text.index("| verdict |")
    assert r"-20.0 % \[-21.8, -18.1\]" in text


def test_names_stay_names() -> None:
    text = markdown_report(sample_view(name=HOSTILE, description="x"))
    assert "<script>" not in text and r"\<script\>" in text
    assert escaped("a | b\n# c @team [x](y) `z`") == r"a \| b \# c \@team \[x\](y) \`z\`"


def test_a_run_without_cells_is_said_to_have_none() -> None:
    assert "**This run has no cells.**" in markdown_report(view_of([]))
