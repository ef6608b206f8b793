"""The seam between stacks and the runner: which stacks there are, what is refused, a foreign one end to end."""

import importlib.util
import os
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.cli import app
from epbench.errors import ScenarioError, UnfitMachineError
from epbench.layout import Layout
from epbench.provenance import code_digest
from epbench.records import CellResult
from epbench.runner.launch import RunOptions, run_scenario
from epbench.scenario import load_scenario
from epbench.stack_support import check_stack, known_stacks, require_installed, unsupported
from epbench.stacks.protocol import load_stack
from epbench.store import open_run
from tests.runner.conftest import variables_of_tests

ROOT = Path(__file__).parents[2]

SCENARIO = """
schema = 1
name = "stacks"
world_size = 2
device = "cpu"
[train]
seq_len = 32
[measure]
launches = 1
min_steps = 4
max_steps = 4
max_warmup_steps = 40
trace_steps = 1
[matrix]
layout = ["rep2"]
train.stack = ["transformers", "ddp_stack:build"]
[[include]]
layout = "tp2"
train.stack = "transformers"
[[include]]
layout = "dp2"
train.stack = "ddp_stack:build"
"""

UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "tp and ep": (
        {"layout": Layout(tp=2, ep=2)},
        "stack transformers runs rep, dp and cp, and has no tp = 2, ep = 2",
    ),
    "a router of another model": (
        {"model": ModelSpec(scoring_func="sigmoid")},
        "stack transformers has no model.scoring_func = sigmoid (only softmax)",
    ),
    "selective checkpointing": (
        {"train": {"activation_checkpointing": "selective"}},
        "stack transformers has no train.activation_checkpointing = selective (only none or full)",
    ),
    "a dispatcher": (
        {"train": {"dispatcher": "dedup"}},
        "stack transformers has no train.dispatcher = dedup (only all_to_all)",
    ),
    "tied weights": (
        {"model": ModelSpec(tie_word_embeddings=True)},
        "stack transformers has no model.tie_word_embeddings = true (only false)",
    ),
}


def _cell(stack: str, changes: dict[str, Any]) -> Cell:
    train = TrainSpec(stack=stack, **changes.get("train", {}))
    return Cell(**{"layout": Layout(dp_shard=2)} | changes | {"train": train})


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_transformers_cannot_run_is_said_in_a_sentence(case: str) -> None:
    changes, reason = UNSUPPORTED[case]
    assert unsupported(_cell("transformers", changes)) == [reason]
    assert unsupported(_cell("qwen3_moe", changes)) == []


def test_every_reason_is_given() -> None:
    changes = {"layout": Layout(tp=2), "model": ModelSpec(n_group=2), "train": {"dispatcher": "dedup"}}
    assert len(unsupported(_cell("transformers", changes))) == 3


def test_our_stacks_are_registered_and_found_without_an_installation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    registered = project["entry-points"]["epbench.stacks"]
    assert registered.items() <= known_stacks().items()
    for name, path in registered.items():
        build: Any = load_stack(name)
        assert f"{build.__module__}:{build.__name__}" == path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("transfomers", "no stack named 'transfomers' is installed; did you mean 'transformers'?"),
        ("megatron", "no stack named 'megatron' is installed; known: "),
        ("a b:build", "train.stack = 'a b:build' must read like package.module:function"),
        ("module:", "train.stack = 'module:' must read like package.module:function"),
    ],
)
def test_a_stack_that_cannot_be_meant_ends_the_plan(name: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO.replace("ddp_stack:build", name), encoding="utf-8")
    result = CliRunner().invoke(app, ["plan", str(path)])
    assert result.exit_code == 2
    assert said in result.output
    with pytest.raises(ScenarioError, match=re.escape(said)):
        check_stack(name, where="here")


def test_a_function_that_is_not_there_is_an_error_and_no_traceback() -> None:
    with pytest.raises(ScenarioError, match=r"cannot load 'tests\.runner\.fake_stacks:nothing'"):
        load_stack("tests.runner.fake_stacks:nothing")


def test_a_missing_library_is_said_before_anything_is_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("epbench.stack_support.find_spec", lambda name: None if name == "transformers" else real(name))
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    said = "train.stack = transformers needs the library transformers, not installed here: pip install"
    with pytest.raises(UnfitMachineError, match=re.escape(said)):
        run_scenario(load_scenario(path), RunOptions(reports_dir=tmp_path / "reports"))
    assert not (tmp_path / "reports").exists()
    require_installed(["qwen3_moe", "ddp_stack:build"])


def test_another_version_of_the_library_is_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = ("transformers",)
    here, without = code_digest(stacks), code_digest(("qwen3_moe",))
    monkeypatch.setattr("epbench.stack_support.version", lambda _: "0.1")
    assert len({here, without, code_digest(stacks)}) == 3
    assert code_digest(("qwen3_moe",)) == without


def test_a_registered_foreign_stack_is_part_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "registered_stack_of_a_test.py"
    module.write_text("a = 1", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("foreign", "registered_stack_of_a_test:build", "epbench.stacks")
    monkeypatch.setattr("epbench.stack_support.entry_points", lambda group: [point])
    first = code_digest(("foreign",))
    module.write_text("a = 2", encoding="utf-8")
    assert code_digest(("foreign",)) != first


def test_no_package_puts_another_stack_under_the_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("qwen3_moe", "elsewhere:build", "epbench.stacks")
    monkeypatch.setattr("epbench.stack_support.entry_points", lambda group: [point])
    assert known_stacks()["qwen3_moe"] == "epbench.stacks.qwen3_moe:build"


# ---- the stack of docs/stacks.md, and transformers, from a file to rows ----


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], CellResult]:
    directory = tmp_path_factory.mktemp("stacks")
    text = (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")
    (source,) = re.findall(r'^```python\n(""".*?)^```$', text, re.MULTILINE | re.DOTALL)
    (directory / "ddp_stack.py").write_text(source, encoding="utf-8")
    (directory / "scenario.toml").write_text(SCENARIO, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables_of_tests().items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(directory)]))
        patch.setattr("epbench.provenance.code_digest", lambda _: "code")
        scenario = load_scenario(directory / "scenario.toml")
        outcome = run_scenario(scenario, RunOptions(reports_dir=directory / "reports"))
    return {(cell.train["stack"], cell.layout): cell for cell in open_run(outcome.path).view().cells}


@pytest.mark.parametrize("stack", ["transformers", "ddp_stack:build"])
def test_a_stack_runs_verified_through_the_runner(rows: dict[tuple[str, str], CellResult], stack: str) -> None:
    row = rows[stack, "rep2"]
    assert (row.outcome, row.reason) == ("ok", None)
    assert row.verify.scope == "full"
    assert row.verify.passed
    assert row.step_s is not None
    assert row.tokens_per_s_per_rank == pytest.approx(4 * 32 / row.step_s / 2)
    assert (row.memory.parts_of, row.memory.note) == ("peak", None)
    assert row.memory.peak_phase is not None
    parameters_bytes = 4 * ModelSpec.model_validate(row.model).total_parameters
    assert row.memory_bytes.params == pytest.approx(parameters_bytes, rel=0.02)
    assert row.memory_bytes.optimizer == pytest.approx(2 * parameters_bytes, rel=0.02)


def test_both_stacks_do_equal_work(rows: dict[tuple[str, str], CellResult]) -> None:
    """Same weights and tokens at full size: the first losses agree."""
    theirs, ours = rows["transformers", "rep2"].loss, rows["ddp_stack:build", "rep2"].loss
    assert len(theirs) == 5
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_what_a_stack_cannot_run_is_a_row_with_the_reason(rows: dict[tuple[str, str], CellResult]) -> None:
    skipped, crashed = rows["transformers", "tp2"], rows["ddp_stack:build", "dp2"]
    assert skipped.outcome == "skipped"
    assert "has no tp = 2" in str(skipped.reason)
    assert crashed.outcome == "crashed"
    assert "ddp_stack trains rep layouts, eager, with natural routing" in str(crashed.reason)
