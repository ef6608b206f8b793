"""The page in a headless Chromium, from file://: every chart draws, and nothing of a hostile name runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from epbench.cells import Cell
from epbench.report.build import build_html
from tests.report.sample import DP4, DP4_EP4, HOSTILE, measured_cell, sample_view, view_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom",
)  # fmt: skip

CLICK_STEP_TWICE = """<script>
const heading = [...document.querySelectorAll("#cells-table th")].find((found) => found.textContent === "step, ms");
heading.click();
heading.click();
</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


def dom(html: str, directory: Path, *, size: str) -> tuple[str, str]:
    """The page after its scripts ran (the window is high enough to see every chart), and the console's lines."""
    assert CHROMIUM is not None
    page = directory / "report.html"
    page.write_text(html, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={directory / 'profile'}", f"--window-size={size}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=140, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def drawn(html: str) -> list[str]:
    return re.findall(r'data-drawn="(\w+)"', html)


def test_every_chart_draws_and_the_console_stays_silent(tmp_path: Path) -> None:
    html, console = dom(build_html(sample_view()), tmp_path, size="1200,4500")
    assert drawn(html) == ["yes"] * 5
    assert html.count('class="main-svg"') >= 5
    assert "The chart needs JavaScript" not in html.partition('<script type="application/json"')[0]
    assert console == ""


def test_nothing_of_a_hostile_name_runs_on_a_phone(tmp_path: Path) -> None:
    shout = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    name = shout + HOSTILE
    cells = [
        measured_cell(Cell(layout=DP4_EP4), 0.3, layout=name, device="cpu"),
        measured_cell(Cell(layout=DP4), 0.4, routing=name, device="cpu"),
    ]
    html, console = dom(build_html(view_of(cells, name=name, device="cpu")), tmp_path, size="390,6000")
    assert set(drawn(html)) == {"yes"}
    title = re.search(r"<title>(.*?)</title>", html, re.DOTALL)
    assert title is not None and title[1].endswith("· epbench") and "&lt;script&gt;" in title[1]
    assert "<img" not in html
    assert console == ""


def test_the_policy_refuses_a_script_that_is_not_the_page_s_own(tmp_path: Path) -> None:
    html, console = dom(build_html(sample_view()) + CLICK_STEP_TWICE, tmp_path, size="1200,600")
    assert not re.search(r"<th [^>]*aria-sort=", html)
    assert "Content Security Policy" in console


def test_a_click_on_a_heading_sorts_and_rows_without_a_number_stay_last(tmp_path: Path) -> None:
    page = re.sub(r"<meta http-equiv=[^>]*>", "", build_html(sample_view()), count=1)
    html, _ = dom(page + CLICK_STEP_TWICE, tmp_path, size="1200,600")
    table = html[html.index('id="cells-table"') : html.index("</table>")]
    steps = re.findall(r'<td class="number step"(?: data-sort="([^"]+)")?>', table)
    numbers = [float(step) for step in steps if step]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 11
    assert steps[11:] == [""] * 5
