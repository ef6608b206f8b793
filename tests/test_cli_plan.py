"""``epbench plan`` and the front door: exit codes, one sentence for every bad input, and a quick start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from epbench.cli import parse_duration
from epbench.errors import ScenarioError, UnfitMachineError
from epbench.records import CellResult
from tests.command_line import epbench

SCENARIOS = Path(__file__).parent.parent / "scenarios"
QUICK = str(SCENARIOS / "quick.toml")
HEAVY = ("torch", "pandas", "plotly", "scipy", "jinja2")


def refused(*arguments: str, exit_code: int = 2) -> str:
    """The one sentence on stderr of a command line that is refused."""
    result = epbench(*arguments)
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < 800
    return result.stderr


def files_here() -> list[str]:
    return [path.name for path in Path().iterdir()]


# ---- plan ----


def test_plan_lists_every_cell_and_the_counts() -> None:
    result = epbench("plan", QUICK)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("quick: ")
    assert lines[2].split() == ["cell", "layout", "mode", "routing", "model", "tokens/step", "micro-batches"]
    assert lines[3].startswith("dp4-eager-natural-")
    assert "tiny: 2 layers, 8 experts x 32, top-2; 214 k, 141 k active" in lines[3]
    assert lines[3].endswith("512          1 x 1")
    assert lines[-1] == "11 of 11 cells would run, 0 skipped; 1 launch each on 4 ranks; device auto"
    assert result.stderr == f"next: epbench run {QUICK}\n"


def test_plan_shows_skipped_cells_with_all_their_reasons() -> None:
    result = epbench("plan", QUICK, "--world", "2")
    assert result.exit_code == 0
    skipped = [line for line in result.stdout.splitlines() if line.startswith("  dp4-eager-natural-")]
    assert len(skipped) == 1
    assert skipped[0].endswith("dp_replicate x dp_shard x cp x tp = 4, but the world has 2 ranks")
    assert "0 of 11 cells would run, 11 skipped" in result.stdout


def test_plan_json_is_one_document_of_show_fields() -> None:
    result = epbench("plan", str(SCENARIOS / "qwen3-30b-2gpu.toml"), "--json")
    document = json.loads(result.stdout)
    assert list(document) == ["cells"]
    cells = [CellResult.model_validate(cell) for cell in document["cells"]]
    assert len(cells) == 12
    first = cells[0]
    assert (first.layout, first.mode, first.routing, first.outcome) == ("dp2", "eager", "round_robin", None)
    assert first.model["num_layers"] == 8
    assert first.train["global_batch_size"] == 4
    assert first.varied == ["layout", "mode"]
    assert first.step_s is None


def test_plan_json_of_a_skipped_cell_has_its_outcome_and_reason() -> None:
    document = json.loads(epbench("plan", QUICK, "--world", "8", "--json").stdout)
    cell = document["cells"][0]
    assert cell["outcome"] == "skipped"
    assert cell["reason"] == "dp_replicate x dp_shard x cp x tp = 4, but the world has 8 ranks"


def test_plan_of_a_preset_is_all_its_legal_layouts() -> None:
    result = epbench("plan", "--model", "qwen3-30b-a3b", "--world", "2", "--json")
    layouts = [cell["layout"] for cell in json.loads(result.stdout)["cells"]]
    assert layouts == ["dp2", "dp2-ep2", "cp2", "cp2-ep2", "tp2", "tp2-ep2", "tp2-etp2", "rep2"]


def test_plan_on_cpu_names_the_cells_that_cpu_runs() -> None:
    scenario = str(SCENARIOS / "qwen3-30b-2gpu.toml")
    asked = json.loads(epbench("plan", scenario, "--json").stdout)["cells"][0]
    on_cpu = json.loads(epbench("plan", scenario, "--device", "cpu", "--json").stdout)["cells"][0]
    assert (asked["train"]["compute_dtype"], on_cpu["train"]["compute_dtype"]) == ("bf16", "fp32")
    assert asked["cell"] != on_cpu["cell"]


def test_hostile_description_reaches_the_terminal_as_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'schema = 1\nname = "s"\nworld_size = 1\ndescription = "a\\u001b[31mb\\nc"\n[matrix]\nlayout = "dp1"\n'
    )
    assert epbench("plan", str(path)).stdout.splitlines()[0] == "s: a[31mb c"


def test_a_setting_of_the_model_that_varies_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'schema = 1\nname = "s"\nworld_size = 1\n[model]\npreset = "tiny"\n[matrix]\nlayout = "dp1"\n'
        'model.scoring_func = ["softmax", "sigmoid"]\ntrain.packing = ["none", "lognormal"]\n'
    )
    header, *rows = epbench("plan", str(path)).stdout.splitlines()[2:7]
    assert header.split()[-2:] == ["scoring_func", "packing"]
    assert [row.split()[-2:] for row in rows[:2]] == [["softmax", "none"], ["softmax", "lognormal"]]
    assert [row.split()[-2:] for row in rows[2:]] == [["sigmoid", "none"], ["sigmoid", "lognormal"]]


# ---- bad input ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trian]\nseq_len = 1\n", "unknown key 'trian'; did you mean 'train'?"),
        ('[train]\nseq_len = "x"\n[matrix]\nlayout = "dp4"\n', "train.seq_len must be a valid integer, got 'x'"),
        ('[matrix]\nlayout = ["tp3"]\n', "rep x cp x tp = 3 does not divide the 4 ranks"),
        ("k" * 10_000 + " = 1\n", "(10000 characters)"),
        ('[matrix]\nlayout = ["' + "<script>" * 2_000 + '"]\n', "is not an axis and its degree"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_bad_scenario_exits_2_with_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('schema = 1\nname = "s"\nworld_size = 4\n' + text)
    message = refused(command, "s.toml")
    assert message.startswith("epbench: s.toml: ")
    assert words in message
    assert message.count("\n") == 1
    assert files_here() == ["s.toml"]


@pytest.mark.parametrize("name", ["../../x", "..", "n" * 10_000, "a/b", "", "<script>"])
def test_hostile_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(f'schema = 1\nname = "{name}"\nworld_size = 1\n[matrix]\nlayout = "dp1"\n')
    assert "name must be 1 to 64 letters, digits" in refused("run", "s.toml")
    assert files_here() == ["s.toml"]


def test_files_that_are_no_scenario(tmp_path: Path) -> None:
    assert "cannot be read: no such file or directory" in refused("plan", "none.toml")
    assert "is a directory, not a file" in refused("plan", str(tmp_path))
    assert "is too long to be meant" in refused("plan", "n" * 10_000)
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refused("plan", str(tmp_path / "bad.toml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan"], "either a scenario file, or --model"),
        (["plan", QUICK, "--model", "tiny"], "either a scenario file, or --model"),
        (["plan", "--model", "tiny"], "--model needs --world N"),
        (["plan", "--model", "tiny", "--world", "0"], "whole number from 1 to 65536, got 0"),
        (["plan", "--model", "../x", "--world", "2"], "model.preset must be tiny, qwen3-30b-a3b"),
        (["plan", QUICK, "--world", "x"], "Invalid value for '--world'"),
        (["plan", QUICK, "--device", "tpu"], "--device must be auto, cpu or cuda, got 'tpu'"),
        (["plan", QUICK, "--no-such"], "No such option: --no-such"),
        (["run", QUICK, "--budget", "soon"], "a time is a positive number and s, m or h"),
        (["run", QUICK, "--launches", "0"], "Invalid value for '--launches'"),
        (["plna"], "No such command 'plna'"),
        (["show"], "Missing argument"),
        (["show", "none-such"], "no run 'none-such'"),
        (["show", "r" * 3_000], "no run 'rrr"),
        (["report", "../../../etc"], "no "),
    ],
)
def test_usage_errors_exit_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert files_here() == []


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("0.5s", 0.5), ("2h", 7200)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-5m", "0s", "5 m", "1e3s", "inf", "5d", "\u0665m", "9" * 10_000])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ScenarioError, match="such as 90s, 20m or 2h"):
        parse_duration(text)


# ---- crashes ----


def test_a_machine_that_is_unfit_exits_6(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(*_: object, **__: object) -> None:
        raise UnfitMachineError("no GPU here")

    monkeypatch.setattr("epbench.scenario.load_scenario", unfit)
    assert refused("plan", QUICK, exit_code=6) == "epbench: no GPU here\n"


def test_a_bug_is_one_sentence_and_exit_1_with_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object, **__: object) -> None:
        raise KeyError("boom")

    monkeypatch.setattr("epbench.scenario.load_scenario", buggy)
    monkeypatch.delenv("EPBENCH_TRACEBACK", raising=False)
    message = refused("plan", QUICK, exit_code=1)
    assert message.startswith("epbench: crashed with KeyError: ")
    assert message.count("\n") == 1
    monkeypatch.setenv("EPBENCH_TRACEBACK", "1")
    result = epbench("plan", QUICK)
    assert result.exit_code == 1
    assert "in buggy" in result.stderr


# ---- start ----


def test_plan_and_help_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom epbench.cli import app\n"
        f"for arguments in (['--help'], ['plan', {QUICK!r}], ['plan', {QUICK!r}, '--json']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


EVERY = (
    'schema = 1\nname = "every"\nworld_size = 8\n[model]\npreset = "qwen3-30b-a3b"\n'
    '[train]\nseq_len = 4096\nglobal_batch_size = 16\n[matrix]\nlayout = "auto"\nmode = ["eager", "compiled"]\n'
)


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "every.toml"]])
def test_start_takes_less_than_half_a_second_of_processor(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processor time, the best of ten: a busy machine makes a start slower, never faster.

    Half a second is meant of cores on which pydantic's first model takes 0.2 s; slower ones get as much more.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(SCENARIOS.parent))
    (tmp_path / "every.toml").write_text(EVERY)

    def processor_s(*command: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def is_soon() -> bool:
        slower = max(1, processor_s("-c", "import pydantic\nclass A(pydantic.BaseModel): x: int = 1") / 0.2)
        return processor_s("-m", "epbench", *arguments) < 0.5 * slower

    assert any(is_soon() for _ in range(10))
