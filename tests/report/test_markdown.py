"""A run as markdown: the page's words, and nothing that a forge would read as more than words."""

import re

import pytest

from epbench.report.comparison import Compared
from epbench.report.findings import findings
from epbench.report.markdown import escaped, markdown_report
from epbench.report.runs import compared_runs
from epbench.report.verdict import verdicts
from tests.report.sample import HOSTILE, sample_view, view_of
from tests.report.test_runs import three_runs

GAP = "\N{ZERO WIDTH SPACE}"


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
    assert escaped("a | b\n# c [x](y) `z`").replace(GAP, "") == r"a \| b \# c \[x\](y) \`z\`"


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("@team", f"\\@{GAP}team"),
        ("me@example.org", f"me\\@{GAP}example.org"),
        ("octocat/x#1", f"octocat/x\\#{GAP}1"),
        ("gh-12", f"gh-{GAP}12"),
        ("https://evil.example/x", f"https:{GAP}//evil.example/x"),
        ("WWW.evil.example", f"WWW{GAP}.evil.example"),
        (":my_emoji:+1:", f":{GAP}my\\_emoji:{GAP}+1:"),
        ("$x$", "&#36;x&#36;"),
        ("zipf:1.2 routing: dp4", "zipf:1.2 routing: dp4"),
    ],
)
def test_nothing_that_a_forge_would_link_or_draw_is_left_whole(text: str, dead: str) -> None:
    assert escaped(text) == dead


def test_a_run_without_cells_is_said_to_have_none() -> None:
    assert "**This run has no cells.**" in markdown_report(view_of([]))
