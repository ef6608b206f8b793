"""Files of expert ids: what is refused in a sentence while planning, and what an accepted one routes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.errors import ScenarioError
from epbench.layout import Layout
from epbench.parallel.routing import forced_ids
from epbench.routing_file import check_routing_file, new_routing, open_routing
from epbench.scenario import load_scenario

MODEL = ModelSpec(num_layers=3, mlp_only_layers=(0,), num_experts=8, num_experts_per_tok=2)  # two MoE layers
TRAIN = TrainSpec(global_batch_size=4, seq_len=16)
SCENARIO = """
schema = 1
name = "replay"
world_size = 2
[train]
seq_len = 16
[matrix]
layout = ["dp2-ep2", "tp2-ep2"]
routing = ["natural", "replay:ids.npy"]
"""


def _valid(**sizes: int) -> "np.ndarray[Any, Any]":
    """Distinct experts everywhere; sizes of the four dimensions by name."""
    shape = {"layers": 2, "rows": 4, "positions": 16, "slots": 2} | sizes
    return np.arange(np.prod(list(shape.values())), dtype=np.int64).reshape(*shape.values()) % 8


def _changed(expert: int) -> "np.ndarray[Any, Any]":
    ids = _valid()
    ids[1, 3, 15, 1] = expert
    return ids


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=_valid())
    return buffer.getvalue()


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing there": (None, "cannot be read: no such file or directory"),
    "text": (b"experts", "is not a NumPy array of expert ids (numpy.save writes one)"),
    "an archive": (_archive(), "is not a NumPy array of expert ids (numpy.save writes one)"),
    "three dimensions": (_valid()[0], "expert ids must be 4 dimensions of integers, not 3 dimensions of int64"),
    "fractions": (_valid() / 2, "expert ids must be 4 dimensions of integers, not 4 dimensions of float64"),
    "fewer layers": (_valid(layers=1), "has 1 MoE layers, and the cell needs 2"),
    "fewer rows": (_valid(rows=3), "has 3 rows, and the cell needs 4"),
    "shorter rows": (_valid(positions=8), "has 8 positions, and the cell needs 16"),
    "another top-k": (_valid(slots=4), "has 4 experts per token, and the model chooses 2"),
    "an expert too many": (_changed(8), "MoE layer 1 has expert id 8; the model's are 0 to 7"),
    "a negative expert": (_changed(-1), "MoE layer 1 has expert id -1; the model's are 0 to 7"),
    "an expert twice": (_changed(int(_valid()[1, 3, 15, 0])), "MoE layer 1 sends a token to one expert twice"),
}


def _write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_replayed_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    content, reason = REFUSED[case]
    _write(tmp_path / "ids.npy", content)
    (tmp_path / "scenario.toml").write_text(SCENARIO + "model.num_layers = [3]\nmodel.mlp_only_layers = [[0]]\n")
    with pytest.raises(ScenarioError) as error:
        check_routing_file(tmp_path / "ids.npy", MODEL, TRAIN)
    assert str(error.value).endswith(f"ids.npy: {reason}")
    with pytest.raises(ScenarioError) as planned:
        load_scenario(tmp_path / "scenario.toml")
    assert "scenario.toml: routing: " in str(planned.value)
    assert str(planned.value).endswith(reason)


SPARE: dict[str, Callable[[], "np.ndarray[Any, Any]"]] = {
    "just enough": _valid,
    "more of everything": lambda: _valid(layers=4, rows=8, positions=32),
    "one byte an id": lambda: _valid().astype(np.uint8),
    "two bytes an id": lambda: _valid().astype(">u2"),
}


@pytest.mark.parametrize("case", SPARE)
def test_the_first_layers_rows_and_positions_are_replayed(case: str, tmp_path: Path) -> None:
    ids, path = SPARE[case](), tmp_path / "ids.npy"
    np.save(path, ids)
    check_routing_file(path, MODEL, TRAIN)
    cell = Cell(layout=Layout(dp_shard=2, ep=2), routing=f"replay:{path}", model=MODEL, train=TRAIN)
    part = forced_ids(cell, layer=1, rows=range(2, 4), positions=range(5, 16), device=torch.device("cpu"))
    assert part.dtype == torch.int64
    assert part.tolist() == ids[1, 2:4, 5:16].tolist()


def test_a_plan_names_the_file_once_and_for_all_ranks(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", _valid())
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    rows = load_scenario(tmp_path / "scenario.toml").planned
    assert [row.skip_reason for row in rows] == [None] * 4
    assert {row.cell.routing for row in rows} == {"natural", f"replay:{(tmp_path / 'ids.npy').resolve()}"}
    assert all("/" not in row.cell.id for row in rows)


@pytest.mark.parametrize(("num_experts", "dtype"), [(8, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_a_new_file_gets_its_name_when_it_is_full(num_experts: int, dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "routing.npy"
    with new_routing(path, (2, 4, 16, 2), num_experts=num_experts) as ids:
        ids[:] = _valid()
        assert not path.exists()
    assert open_routing(path).dtype == dtype
    assert open_routing(path).tolist() == _valid().tolist()
