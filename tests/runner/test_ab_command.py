"""``epbench ab`` as a person types it: what it hands on, what it prints, and which of two exit codes wins."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from epbench.cli import app
from epbench.errors import UnfitMachineError
from epbench.runner.ab import AbOptions, AbOutcome

SCENARIO = str(Path(__file__).parents[2] / "scenarios" / "gate-cpu.toml")


@dataclass
class FakeVerdict:
    exit_code: int

    def model_dump_json(self, indent: int) -> str:
        return "{}"


@dataclass
class FakeGated:
    verdict: FakeVerdict
    path: Path = Path("/ab")
    next_command: str = "epbench report"


def invoked(monkeypatch: pytest.MonkeyPatch, launches: int, verdict: int, *words: str) -> tuple[Any, list[AbOptions]]:
    asked: list[AbOptions] = []

    def run_ab(_: object, options: AbOptions) -> AbOutcome:
        asked.append(options)
        if launches == UnfitMachineError.exit_code:
            raise UnfitMachineError("the machine gave up")
        return AbOutcome(Path("/ab"), launches)

    monkeypatch.setattr("epbench.runner.ab.run_ab", run_ab)
    monkeypatch.setattr("epbench.report.gate.command.gate", lambda *_, **__: FakeGated(FakeVerdict(verdict)))
    monkeypatch.setattr("epbench.report.gate.text.render_verdict", lambda _: "the verdict")
    return CliRunner().invoke(app, ["ab", SCENARIO, *words]), asked


@pytest.mark.parametrize(
    ("launches", "verdict", "code"),
    [(0, 0, 0), (0, 3, 3), (0, 4, 4), (5, 0, 5), (5, 3, 3), (5, 4, 5), (130, 3, 130), (6, 3, 6)],
)
def test_exit_codes_by_precedence(monkeypatch: pytest.MonkeyPatch, launches: int, verdict: int, code: int) -> None:
    result, _ = invoked(monkeypatch, launches, verdict)
    assert result.exit_code == code
    assert result.stdout == ("the verdict\n/ab\n" if launches in (0, 5) else "")


def test_options_reach_the_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--base", "v1", "--head", "v2;mode=eager", "--head", "env:A=1", "--budget", "2m", "--launches", "3"]
    result, (options,) = invoked(monkeypatch, 0, 0, *words, "--json")
    assert (options.base, options.head) == (["v1"], ["v2;mode=eager", "env:A=1"])
    assert (options.budget_s, options.launches, options.only, options.resume) == (120.0, 3, None, None)
    assert result.stdout == "{}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fail-on", "x"], "--fail-on does not know 'x'"),
        (["--device", "tpu"], "--device must be auto, cpu or cuda, got 'tpu'"),
        (["--budget", "5"], "a time is a positive number and s, m or h"),
    ],
)
def test_a_mistake_launches_nothing(monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    result, asked = invoked(monkeypatch, 0, 0, *words)
    assert (result.exit_code, asked) == (2, [])
    assert said in result.stderr
