"""A cell that starts from a checkpoint: sizes from its config.json, planned without torch, refused in one sentence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import pytest
from typer.testing import CliRunner

from epbench.cli import app
from epbench.errors import ScenarioError
from epbench.hf_config import config_json
from epbench.runner.verify import shrink
from epbench.scenario import load_scenario
from tests.checkpoints import SMALL

HEAD = 'schema = 1\nname = "trained"\nworld_size = 4\n'
CELL = '[matrix]\nlayout = "ep2"\n'


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a scenario beside a checkpoint ``weights``, whose files are empty: a plan does not open them."""
    directory = tmp_path / "weights"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config_json(SMALL)))
    (directory / "model.safetensors").touch()

    def write(text: str) -> Path:
        path = tmp_path / "scenario.toml"
        path.write_text(HEAD + text)
        return path

    return write


def test_sizes_are_those_of_the_file_and_the_path_is_relative_to_the_scenario(scenario: Callable[[str], Path]) -> None:
    path = scenario(f'[model]\ncheckpoint = "weights"\n{CELL}')
    (cell,) = load_scenario(path).cells
    origin = {"preset": "weights", "checkpoint": str(path.parent / "weights")}
    assert cell.model == SMALL.model_copy(update=origin)
    assert load_scenario(path).cells[0].id == cell.id
    assert shrink(cell).model.checkpoint is None


def test_one_directory_is_one_cell_however_the_scenario_is_reached(
    scenario: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scenario(f'[model]\ncheckpoint = "weights"\n{CELL}')
    (path.parent / "link").symlink_to(path.parent)
    monkeypatch.chdir(path.parent / "weights")
    ways = (path, Path("../scenario.toml"), path.parent / "link" / "scenario.toml")
    assert len({load_scenario(way).cells[0].id for way in ways}) == 1


def test_fewer_layers_and_equal_keys_are_allowed(scenario: Callable[[str], Path]) -> None:
    text = '[model]\ncheckpoint = "weights"\nnum_layers = 1\nmlp_only_layers = [0]\nrope_theta = 1e6\n'
    model = load_scenario(scenario(text + CELL)).planned[0].cell.model
    assert (model.num_layers, model.total_layers) == (1, 2)


def test_random_and_trained_weights_stand_side_by_side(scenario: Callable[[str], Path]) -> None:
    rows = load_scenario(scenario(f'{CELL}[[include]]\nlayout = "dp4"\nmodel.checkpoint = "weights"\n')).planned
    assert [row.cell.model.preset for row in rows] == ["tiny", "weights"]
    assert [row.skip_reason for row in rows] == [None, None]


WRONG = {
    'checkpoint = "elsewhere"': "elsewhere/config.json: cannot be read: no such file",
    "checkpoint = 3": "model.checkpoint must be a directory, got 3",
    'checkpoint = ""': "model.checkpoint must be a directory, got ''",
    'checkpoint = "a\\u0000b"': "is not a possible path",
    'checkpoint = "weights"\npreset = "tiny"': "model.preset and model.checkpoint both give the sizes",
    'checkpoint = "weights"\nnum_layers = 3': "model.num_layers = 3, but the checkpoint has 2",
    'checkpoint = "weights"\nnum_experts = 8': "model.num_experts = 8, but the checkpoint has 12",
    'checkpoint = "weights"\nhidden_size = "32"': "model.hidden_size must be a valid integer, got '32'",
}


@pytest.mark.parametrize("lines", WRONG, ids=lambda lines: ascii(lines)[14:40])
def test_a_checkpoint_that_cannot_be_is_one_sentence(scenario: Callable[[str], Path], lines: str) -> None:
    with pytest.raises(ScenarioError) as error:
        load_scenario(scenario(f"[model]\n{lines}\n{CELL}"))
    assert WRONG[lines] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_without_weights_is_refused_before_anything_runs(scenario: Callable[[str], Path]) -> None:
    path = scenario(f'[model]\ncheckpoint = "weights"\n{CELL}')
    (path.parent / "weights" / "model.safetensors").unlink()
    result = CliRunner().invoke(app, ["plan", str(path)])
    assert result.exit_code == 2
    assert "weights/model.safetensors: is missing" in " ".join(result.output.split()).replace("\n", "")


def test_a_plan_of_trained_cells_imports_no_torch(scenario: Callable[[str], Path]) -> None:
    path = scenario(f'[model]\ncheckpoint = "weights"\n{CELL}')
    code = "import sys; from epbench.cli import app; app(['plan', sys.argv[1], '--json'], standalone_mode=False)"
    code += "; assert not {'torch', 'safetensors'} & set(sys.modules)"
    result = run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (cell,) = json.loads(result.stdout)["cells"]
    assert cell["model"]["num_experts"] == 12
