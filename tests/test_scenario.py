"""Scenario files: order of expansion, models, devices, and rows that are skipped with their reasons."""

import tomllib

import pytest

from epbench.cells import PRESETS, ModelSpec
from epbench.layout import legal_layouts
from epbench.scenario import load_scenario
from tests.scenarios import HEAD, ONE_CELL, Write, names, refusal

# ---- expansion ----


def test_product_keeps_the_order_of_the_file_and_the_last_key_varies_fastest(write: Write) -> None:
    scenario = load_scenario(
        write(HEAD + '[matrix]\nlayout = ["dp4", "ep4"]\nmode = ["eager", "compiled"]\nrouting = "natural"')
    )
    assert names(scenario) == [
        "dp4 eager natural",
        "dp4 compiled natural",
        "dp4-ep4 eager natural",
        "dp4-ep4 compiled natural",
    ]
    assert scenario.varied == ["layout", "mode"]
    assert all(it.skip_reason is None for it in scenario.planned)


def test_zip_walks_its_lists_together_and_is_one_more_axis(write: Write) -> None:
    scenario = load_scenario(
        write(
            HEAD + '[matrix]\nlayout = ["dp4", "tp2"]\n'
            "[[zip]]\nmodel.num_experts = [4, 8]\nmodel.moe_intermediate_size = [64, 32]\n"
        )
    )
    sizes = [
        (it.cell.layout.slug, it.cell.model.num_experts, it.cell.model.moe_intermediate_size) for it in scenario.planned
    ]
    assert sizes == [("dp4", 4, 64), ("dp4", 8, 32), ("dp2-tp2", 4, 64), ("dp2-tp2", 8, 32)]
    assert scenario.varied == ["layout", "model.moe_intermediate_size", "model.num_experts"]


def test_exclude_needs_all_keys_and_any_value_and_matches_canonical_names(write: Write) -> None:
    scenario = load_scenario(
        write(
            HEAD + '[matrix]\nlayout = ["ep4", "dp4", "tp2", "tp4"]\nmode = ["eager", "compiled"]\n'
            '[[exclude]]\nlayout = ["*tp2", "ep4"]\nmode = "compiled"\n'
            '[[exclude]]\nlayout = "tp4"\n'
        )
    )
    assert names(scenario) == [
        "dp4-ep4 eager natural",
        "dp4 eager natural",
        "dp4 compiled natural",
        "dp2-tp2 eager natural",
    ]


def test_exclude_compares_numbers_and_booleans_by_value(write: Write) -> None:
    scenario = load_scenario(
        write(
            HEAD + '[matrix]\nlayout = "dp4"\nmodel.num_experts = [4, 8, 64]\n'
            "train.reshard_after_forward = [true, false]\n"
            "[[exclude]]\nmodel.num_experts = [8, 64]\ntrain.reshard_after_forward = true\n"
            '[[exclude]]\nmodel.num_experts = "6*"\n'
        )
    )
    kept = [(it.cell.model.num_experts, it.cell.train.reshard_after_forward) for it in scenario.planned]
    assert kept == [(4, True), (4, False), (8, False)]


def test_illegal_layouts_stay_as_skipped_rows_with_every_rule(write: Write) -> None:
    scenario = load_scenario(write(HEAD + '[matrix]\nlayout = ["dp4", "dp2-tp4-ep3"]\n'))
    good, bad = scenario.planned
    assert good.skip_reason is None
    assert bad.cell.layout.slug == "dp2-tp4-ep3"
    assert bad.cell.id.startswith("dp2-tp4-ep3-eager-natural-")
    assert bad.skip_reason == (
        "dp_replicate x dp_shard x cp x tp = 8, but the world has 4 ranks; "
        "ep x etp = 3 does not divide dp_shard x cp x tp = 8; nearest ep x etp: 2 or 4; "
        "num_experts = 8 is not a multiple of ep = 3; nearest ep: 2 or 4"
    )
    assert scenario.cells == [good.cell]


def test_include_comes_last_with_base_tables_and_its_own_product(write: Write) -> None:
    scenario = load_scenario(
        write(
            HEAD + '[train]\nseq_len = 256\n[matrix]\nlayout = "dp4"\n'
            '[[exclude]]\nlayout = "dp4-ep4"\n'
            '[[include]]\nlayout = "ep4"\nmode = ["eager", "compiled"]\nexpect = "any"\n'
            'train.activation_checkpointing = "full"\n'
        )
    )
    assert names(scenario) == ["dp4 eager natural", "dp4-ep4 eager natural", "dp4-ep4 compiled natural"]
    assert [it.cell.expect for it in scenario.planned] == ["ok", "any", "any"]
    assert {it.cell.train.seq_len for it in scenario.planned} == {256}
    assert scenario.planned[1].cell.train.activation_checkpointing == "full"


def test_include_alone_is_a_scenario(write: Write) -> None:
    assert names(load_scenario(write(HEAD + '[[include]]\nlayout = "dp4"\n'))) == ["dp4 eager natural"]


@pytest.mark.parametrize(
    "tail",
    [
        '[matrix]\nlayout = ["ep4", "dp4-ep4"]\n',
        '[matrix]\nlayout = ["dp4"]\n[[include]]\nlayout = "dp4"\n',
    ],
)
def test_duplicates_are_refused_by_cell_id(write: Write, tail: str) -> None:
    assert "is planned twice" in refusal(write(HEAD + tail))


def test_auto_is_every_legal_layout(write: Write) -> None:
    scenario = load_scenario(write(HEAD + '[train]\nglobal_batch_size = 8\n[matrix]\nlayout = "auto"\n'))
    train = scenario.planned[0].cell.train
    assert [it.cell.layout for it in scenario.planned] == legal_layouts(4, ModelSpec(), train)
    slugs = {it.cell.layout.slug for it in scenario.planned}
    assert {"rep4", "rep2-dp2-ep2", "dp2-tp2-etp2", "cp2-tp2-ep4"} <= slugs


def test_auto_without_a_legal_layout_is_a_skipped_row_that_says_why(write: Write) -> None:
    scenario = load_scenario(write(HEAD + '[train]\nglobal_batch_size = 3\nseq_len = 127\n[matrix]\nlayout = "auto"\n'))
    [row] = scenario.planned
    assert row.cell.layout.slug == "dp4"
    assert row.skip_reason is not None
    assert "global_batch_size = 3 is not a multiple" in row.skip_reason


def test_world_size_as_an_axis_keeps_misfits_as_one_skipped_row(write: Write) -> None:
    scenario = load_scenario(
        write(
            'schema = 1\nname = "t"\n[train]\nglobal_batch_size = 8\n'
            '[matrix]\nworld_size = [2, 4]\nlayout = ["dp2", "dp4", "tp4", "ep2"]\n'
        )
    )
    rows = {it.cell.layout.slug: (it.world_size, it.skip_reason is None) for it in scenario.planned}
    assert rows == {
        "dp2": (2, True),
        "dp4": (4, True),
        "tp4": (4, True),
        "dp2-ep2": (2, True),
        "dp4-ep2": (4, True),
    }
    assert len(scenario.planned) == len(rows)
    assert "world_size" in scenario.varied


def test_world_override_replaces_both_the_fixed_size_and_the_axis(write: Write) -> None:
    fixed = load_scenario(write(HEAD + '[matrix]\nlayout = ["ep2", "tp4"]\n'), world_size=2)
    assert [(it.cell.layout.slug, it.world_size) for it in fixed.planned] == [("dp2-ep2", 2), ("tp4", 2)]
    assert fixed.planned[0].skip_reason is None
    assert fixed.planned[1].skip_reason is not None
    axis = load_scenario(write('schema = 1\nname = "t"\n[matrix]\nworld_size = [2, 4]\nlayout = "ep2"\n'), world_size=4)
    assert [it.cell.layout.slug for it in axis.planned] == ["dp4-ep2"]
    assert tomllib.loads(axis.text)["world_size"] == 4


# ---- models ----


def test_preset_with_overrides_keeps_the_published_number_of_layers(write: Write) -> None:
    scenario = load_scenario(
        write(HEAD + '[model]\npreset = "qwen3-30b-a3b"\nnum_layers = 8\nmlp_only_layers = [0, 1]\n' + ONE_CELL)
    )
    model = scenario.planned[0].cell.model
    expected = PRESETS["qwen3-30b-a3b"].model_copy(update={"num_layers": 8, "mlp_only_layers": (0, 1)})
    assert model == expected
    assert (model.num_layers, model.total_layers) == (8, 48)


def test_explicit_model_must_be_complete(write: Write) -> None:
    message = refusal(write(HEAD + "[model]\nnum_layers = 8\nhidden_size = 64\n" + ONE_CELL))
    assert "model has no preset, so it must also give moe_intermediate_size, num_attention_heads" in message


def test_explicit_model(write: Write) -> None:
    sizes = {
        "num_layers": 3,
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 512,
    }
    lines = "".join(f"{name} = {size}\n" for name, size in sizes.items())
    model = load_scenario(write(f"{HEAD}[model]\n{lines}{ONE_CELL}")).planned[0].cell.model
    assert (model.preset, model.num_layers, model.total_layers) == ("custom", 3, 3)
    assert "intermediate_size" in refusal(write(f"{HEAD}[model]\n{lines}mlp_only_layers = [0]\n{ONE_CELL}"))


# ---- not yet ----


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("train", 'dispatcher = "dedup"'),
        ("train", 'dispatcher = "deepep"'),
        ("train", 'compute_dtype = "fp8"'),
        ("train", 'master_dtype = "fp8"'),
        ("train", 'overlap = "chunks:4"'),
    ],
)
def test_what_is_not_built_is_refused_when_fixed_and_skipped_on_an_axis(write: Write, table: str, line: str) -> None:
    message = refusal(write(f"{HEAD}[{table}]\n{line}\n{ONE_CELL}"))
    assert "not yet: " in message
    first = line.splitlines()[0]
    scenario = load_scenario(write(f"{HEAD}{ONE_CELL}[[include]]\nlayout = 'ep4'\n{table}.{first}\n"))
    runs, skipped = scenario.planned
    assert runs.skip_reason is None
    assert skipped.skip_reason is not None
    assert skipped.skip_reason.startswith(f"not yet: {table}.{first.split(' = ')[0]} = ")
    assert len({it.cell.id for it in scenario.planned}) == 2


def test_routings_are_written_one_way_and_have_harmless_ids(write: Write) -> None:
    routings = ["round_robin", "uniform", "zipf:1.20", "hot_rank:0.50"]
    scenario = load_scenario(write(f'{HEAD}[matrix]\nlayout = "ep2"\nrouting = {routings}\n'))
    assert [it.cell.routing for it in scenario.planned] == ["round_robin", "uniform", "zipf:1.2", "hot_rank:0.5"]
    for row in scenario.planned:
        assert row.skip_reason is None
        assert set(row.cell.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-"), row.cell.id
        assert ".." not in row.cell.id


@pytest.mark.parametrize(
    ("layout", "routing", "reason"),
    [
        ("dp4", "hot_rank:0.5", "rank 0 of ep = 1 holds 8 of 8 experts, so 1 of the copies can go there"),
        ("ep8-dp8", "hot_rank:0.75", "rank 0 of ep = 8 holds 1 of 8 experts, so 0 to 0.5 of the copies can go there"),
    ],
)
def test_a_hot_rank_that_cannot_be_is_a_skipped_row(write: Write, layout: str, routing: str, reason: str) -> None:
    text = HEAD.replace("world_size = 4", "world_size = 8") if "8" in layout else HEAD
    batch = "[train]\nglobal_batch_size = 8\n"
    scenario = load_scenario(write(f'{text}{batch}[matrix]\nlayout = "{layout}"\nrouting = "{routing}"\n'))
    assert [it.skip_reason for it in scenario.planned] == [f"routing {routing}: {reason}"]


# ---- devices ----


def test_cpu_computes_in_fp32_and_the_ids_say_so(write: Write) -> None:
    path = write(HEAD + '[train]\ncompute_dtype = "bf16"\n' + ONE_CELL)
    asked = load_scenario(path)
    on_cpu = asked.resolved("cpu")
    assert (asked.device, on_cpu.device) == ("auto", "cpu")
    assert asked.planned[0].cell.train.compute_dtype == "bf16"
    assert on_cpu.planned[0].cell.train.compute_dtype == "fp32"
    assert asked.planned[0].cell.id != on_cpu.planned[0].cell.id
    assert asked.resolved("cuda").planned == asked.planned
    assert load_scenario(path, device="cpu").planned == on_cpu.planned
    assert on_cpu.resolved("cpu") == on_cpu


def test_precision_as_an_axis_is_skipped_on_cpu_not_measured_twice(write: Write) -> None:
    path = write(HEAD + ONE_CELL + 'train.compute_dtype = ["fp32", "bf16"]\n')
    first, second = load_scenario(path, device="cpu").planned
    assert first.skip_reason is None
    assert second.skip_reason == "train.compute_dtype = bf16 is not measured on cpu, which runs fp32"


@pytest.mark.parametrize(
    ("device", "compute", "expected"),
    [
        ("cuda", "bf16", None),
        ("cuda", "fp32", "train.master_dtype = bf16 is narrower than train.compute_dtype = fp32"),
        ("cpu", "bf16", "train.master_dtype = bf16 is not measured on cpu, which runs fp32"),
    ],
)
def test_masters_in_bf16(write: Write, device: str, compute: str, expected: str | None) -> None:
    rows = f'{HEAD}[train]\ncompute_dtype = "{compute}"\n{ONE_CELL}train.master_dtype = ["fp32", "bf16"]\n'
    wide, narrow = load_scenario(write(rows), device=device).planned
    assert (wide.skip_reason, narrow.skip_reason) == (None, expected)
    fixed = write(f'{HEAD}[train]\ncompute_dtype = "bf16"\nmaster_dtype = "bf16"\n{ONE_CELL}')
    assert load_scenario(fixed, device="cpu").planned[0].cell.train.master_dtype == "fp32"
