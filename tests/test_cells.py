"""Sizes of the published models, counts of layers, and ids of cells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.cells import PRESETS, Cell, ModelSpec, fits
from epbench.layout import Layout


@pytest.mark.parametrize(
    ("preset", "total_billions", "active_billions"),
    [("qwen3-30b-a3b", 30.532, 3.353), ("qwen3-235b-a22b", 235.09, 22.19), ("qwen3-coder-480b-a35b", 480.16, 35.48)],
)
def test_parameters_of_the_published_models(preset: str, total_billions: float, active_billions: float) -> None:
    model = PRESETS[preset]
    assert model.total_parameters / 1e9 == pytest.approx(total_billions, abs=0.006)
    assert model.active_parameters / 1e9 == pytest.approx(active_billions, abs=0.006)


def test_a_tied_lm_head_has_no_parameters_of_its_own() -> None:
    untied = ModelSpec()
    tied = untied.model_copy(update={"tie_word_embeddings": True})
    assert untied.total_parameters - tied.total_parameters == 512 * 64


def test_by_hand_shared_experts_are_parameters_that_every_token_passes() -> None:
    """One shared expert of 3 x 64 x 32 = 6144 in each of two MoE layers; the dense layer between has none."""
    sizes = {"num_layers": 3, "mlp_only_layers": (1,)}
    without, with_shared = (ModelSpec(**sizes, n_shared_experts=count) for count in (0, 1))
    assert with_shared.total_parameters - without.total_parameters == 2 * 6144
    assert with_shared.active_parameters - without.active_parameters == 2 * 6144


@given(
    num_layers=st.integers(1, 60),
    step=st.integers(1, 7),
    dense=st.lists(st.integers(-3, 70), max_size=8),
)
def test_number_of_moe_layers_is_the_count_of_the_rule(num_layers: int, step: int, dense: list[int]) -> None:
    model = ModelSpec(num_layers=num_layers, decoder_sparse_step=step, mlp_only_layers=tuple(dense))
    assert model.num_moe_layers == sum(model.is_moe_layer(index) for index in range(num_layers))


@pytest.mark.parametrize(
    ("routing", "words"),
    [("natural", "natural"), ("zipf:1.2", "zipf-1.2"), ("hot_rank:0.5", "hot_rank-0.5")],
)
def test_id_names_layout_mode_and_routing(routing: str, words: str) -> None:
    cell = Cell(layout=Layout(dp_shard=2, tp=2, ep=4), mode="compiled", routing=routing)
    assert cell.id == f"dp2-tp2-ep4-compiled-{words}-{cell.digest[:6]}"


def test_id_of_a_replayed_file_holds_no_path() -> None:
    first, second = (Cell(layout=Layout(), routing=f"replay:/data/{name}") for name in ("a", "b"))
    assert set(first.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert first.id != second.id


def test_expectation_is_no_part_of_what_is_measured() -> None:
    assert Cell(layout=Layout(), expect="oom").id == Cell(layout=Layout()).id


@pytest.mark.parametrize(
    ("globs", "wanted"),
    [
        (None, True),
        ("*", True),
        ("dp2-*", True),
        ("DP2-*", False),
        ("tp2-*", False),
        ("tp2-*, *-eager-*", True),
        ("", False),
        (",", False),
    ],
)
def test_which_cells_globs_fit(globs: str | None, wanted: bool) -> None:
    assert fits("dp2-ep2-eager-natural-0a1b2c", globs) is wanted
