"""The scenarios that come with epbench ask what they say they ask."""

from pathlib import Path

import pytest

from epbench.cells import PRESETS
from epbench.errors import ScenarioError
from epbench.scenario import load_scenario, preset_scenario
from tests.scenarios import SCENARIOS


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_of_the_repository_plans_without_a_skip(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert [it.skip_reason for it in scenario.planned] == [None] * len(scenario.planned)


def test_quick_has_the_layouts_that_a_first_look_needs() -> None:
    scenario = load_scenario(SCENARIOS / "quick.toml")
    eager = {it.cell.layout.slug for it in scenario.planned if it.cell.mode == "eager"}
    compiled = {it.cell.layout.slug for it in scenario.planned if it.cell.mode == "compiled"}
    sizes = {it.cell.model for it in scenario.planned if it.cell.layout.slug == "dp4-ep4"}
    assert {"dp4", "dp4-ep4", "dp2-tp2-ep4", "dp2-cp2-ep4"} <= eager
    assert len(eager) >= 6
    assert len(compiled) >= 3
    assert len(sizes) == 3
    assert len({it.num_experts * it.expert_parameters for it in sizes}) == 1
    assert scenario.measure.launches == 1  # 11 cells must fit into four minutes of two cores; nothing is ranked


def test_moe_sizes_have_equal_expert_parameters_and_equal_work() -> None:
    cells = load_scenario(SCENARIOS / "moe-sizes-2gpu.toml").cells
    assert len({cell.model.num_experts for cell in cells}) == 4
    assert len({cell.model.num_experts * cell.model.moe_intermediate_size for cell in cells}) == 1
    assert len({cell.model.num_experts_per_tok * cell.model.moe_intermediate_size for cell in cells}) == 1


@pytest.mark.parametrize(("gpus", "layers", "layouts", "cells"), [(8, 48, 10, 30), (4, 24, 9, 28)])
def test_qwen3_30b_on_a_host_of_gpus(gpus: int, layers: int, layouts: int, cells: int) -> None:
    scenario = load_scenario(SCENARIOS / f"qwen3-30b-{gpus}gpu.toml")
    every = scenario.cells
    assert len(every) == len(scenario.planned) == cells, "none is illegal"
    assert {cell.model for cell in every} == {PRESETS["qwen3-30b-a3b"].model_copy(update={"num_layers": layers})}
    assert len({cell.layout for cell in every}) == layouts
    assert {cell.routing for cell in every} == {"natural", "uniform", "zipf:1.2", "round_robin"}
    assert {cell.train.activation_checkpointing for cell in every} == {"full", "selective"}
    assert {cell.train.global_batch_size // gpus for cell in every} == {2}, "as many tokens a rank"
    (published,) = (cell for cell in every if cell.train.master_dtype == "bf16")
    assert (published.layout.slug, published.train.max_grad_norm) == (f"dp{gpus}-ep{gpus}", 0)


def test_preset_scenario_is_all_legal_layouts_of_a_model() -> None:
    scenario = preset_scenario("qwen3-30b-a3b", world_size=2)
    slugs = [it.cell.layout.slug for it in scenario.planned]
    assert slugs == ["dp2", "dp2-ep2", "cp2", "cp2-ep2", "tp2", "tp2-ep2", "tp2-etp2", "rep2"]
    with pytest.raises(ScenarioError, match="did you mean 'qwen3-30b-a3b'"):
        preset_scenario("qwen3-30b", world_size=2)
