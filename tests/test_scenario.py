"""Scenario files: order of expansion, skipped rows with their reasons, and every kind of bad input."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.cells import PRESETS, ModelSpec
from epbench.errors import ScenarioError
from epbench.layout import legal_layouts
from epbench.scenario import Scenario, load_scenario, preset_scenario
from epbench.scenario_file import to_toml

SCENARIOS = Path(__file__).parent.parent / "scenarios"
HEAD = 'schema = 1\nname = "t"\nworld_size = 4\n'
ONE_CELL = '[matrix]\nlayout = ["dp4"]\n'

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str, name: str = "t.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def names(scenario: Scenario) -> list[str]:
    return [f"{it.cell.layout.slug} {it.cell.mode} {it.cell.routing}" for it in scenario.planned]


def refusal(path: Path | str, **overrides: object) -> str:
    """The one sentence that a scenario is refused with."""
    with pytest.raises(ScenarioError) as error:
        load_scenario(path, **overrides)  # type: ignore[arg-type]
    message = str(error.value)
    assert message.isprintable(), message
    assert len(message) < 600, message
    return message


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


# ---- extends, text, digest ----


def test_extends_merges_tables_by_key_and_replaces_lists_and_blocks(write: Write) -> None:
    write(
        HEAD + '[train]\nseq_len = 256\nglobal_batch_size = 8\n[matrix]\nlayout = ["dp4"]\nmode = ["compiled"]\n'
        '[[include]]\nlayout = "tp4"\n',
        "base.toml",
    )
    child = write(
        'extends = "base.toml"\nschema = 1\nname = "child"\nworld_size = 2\n[train]\nglobal_batch_size = 2\n'
        '[matrix]\nlayout = ["dp2", "tp2"]\n[[include]]\nlayout = "cp2"\n',
        "child.toml",
    )
    scenario = load_scenario(child)
    assert names(scenario) == ["dp2 compiled natural", "tp2 compiled natural", "cp2 eager natural"]
    assert (scenario.planned[0].cell.train.seq_len, scenario.planned[0].cell.train.global_batch_size) == (
        256,
        2,
    )


def test_kept_text_is_self_contained_and_reads_back_to_the_same_cells(write: Write) -> None:
    write(HEAD + ONE_CELL + "[[zip]]\nmodel.num_experts = [4, 8]\n", "base.toml")
    child = write('extends = "base.toml"\nschema = 1\nname = "child"\ndescription = "a \\"b\\" \\\\ \u00e9"\n')
    scenario = load_scenario(child)
    again = load_scenario(write(scenario.text, "again.toml"))
    assert "extends" not in scenario.text
    assert again.planned == scenario.planned
    assert again.digest == scenario.digest
    assert again.description == 'a "b" \\ \u00e9'


def test_text_of_a_plain_file_is_the_file_with_its_comments(write: Write) -> None:
    text = "# why\n" + HEAD + ONE_CELL
    assert load_scenario(write(text)).text == text


def test_digest_changes_with_what_is_measured_and_not_with_words(write: Write) -> None:
    base = load_scenario(write(HEAD + ONE_CELL)).digest
    assert load_scenario(write(HEAD + 'description = "x"\n' + ONE_CELL)).digest == base
    assert load_scenario(write(HEAD + ONE_CELL + "[measure]\nlaunches = 7\n")).digest != base
    assert load_scenario(write(HEAD + ONE_CELL + "train.seq_len = 64\n")).digest != base


_PLAIN = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.text(max_size=20), st.floats(-1e9, 1e9))
_KEYS = st.text(min_size=1, max_size=8)
_TABLES = st.recursive(
    st.dictionaries(_KEYS, st.one_of(_PLAIN, st.lists(_PLAIN, max_size=3)), max_size=3),
    lambda inner: st.dictionaries(_KEYS, st.one_of(inner, st.lists(inner, min_size=1, max_size=2)), max_size=3),
    max_leaves=8,
)


@given(_TABLES)
def test_written_toml_reads_back_equal(tables: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(tables)) == tables


# ---- bad input ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + ONE_CELL + "[modle]\n", "unknown key 'modle'; did you mean 'model'?"),
        (HEAD + "worldsize = 2\n" + ONE_CELL, "did you mean 'world_size'?"),
        (HEAD + "[train]\nseqlen = 2\n" + ONE_CELL, "unknown key 'train.seqlen'; did you mean 'seq_len'?"),
        (
            HEAD + "[measure]\nlaunch = 2\n" + ONE_CELL,
            "unknown key 'measure.launch'; did you mean 'launches'?",
        ),
        (HEAD + ONE_CELL + "num_experts = [2]\n", "'matrix.num_experts'; did you mean 'model.num_experts'?"),
        (HEAD + ONE_CELL + "train.seq_lne = [2]\n", "'matrix.train.seq_lne'; did you mean 'seq_len'?"),
        (HEAD + ONE_CELL + "[[exclude]]\nlayuot = 'dp4'\n", "'exclude[0].layuot'; did you mean 'layout'?"),
        (HEAD + ONE_CELL + "[[exclude]]\nexpect = 'ok'\n", "unknown key 'exclude[0].expect'"),
        (HEAD + ONE_CELL + "[gate]\nalhpa = 0.1\n", "did you mean 'alpha'?"),
        (HEAD + "[model]\ntotal_layers = 3\n" + ONE_CELL, "unknown key 'model.total_layers'"),
        (HEAD + ONE_CELL + f"{'k' * 10_000} = 1\n", "(10007 characters)"),
        (HEAD + ONE_CELL + '"<script>\\u001b[31m" = 1\n', "unknown key"),
        (
            HEAD + '[train]\nseq_len = "long"\n' + ONE_CELL,
            "train.seq_len must be a valid integer, got 'long'",
        ),
        (HEAD + "[train]\nseq_len = true\n" + ONE_CELL, "train.seq_len must be a valid integer, got True"),
        (HEAD + "[train]\nseq_len = 0\n" + ONE_CELL, "train.seq_len must be greater than 0, got 0"),
        (HEAD + "[train]\nlr = nan\n" + ONE_CELL, "is a date, an infinite number, or one beyond 64 bits"),
        (HEAD + "[train]\nseed = 99999999999999999999\n" + ONE_CELL, "beyond 64 bits"),
        (HEAD + "[train]\nseq_len = 2020-01-01\n" + ONE_CELL, "'train.seq_len' is a date"),
        (
            HEAD + "[train]\nmicro_batch_size = 0\n" + ONE_CELL,
            "train.micro_batch_size must be greater than 0",
        ),
        (HEAD + '[train]\noptimizer = "sgd"\n' + ONE_CELL, "train.optimizer must be 'adamw', got 'sgd'"),
        (HEAD + '[train]\noverlap = "chunks:x"\n' + ONE_CELL, "train.overlap must match pattern"),
        (HEAD + "[measure]\nmin_steps = 300\n" + ONE_CELL, "exceeds measure.max_steps = 200"),
        (
            HEAD + "[model]\nnum_layers = 1000000\npreset = 'tiny'\n" + ONE_CELL,
            "must be less than or equal to 10000",
        ),
        (HEAD + '[model]\npreset = "qwen3-30b"\n' + ONE_CELL, "did you mean 'qwen3-30b-a3b'?"),
        (HEAD + "model = 3\n" + ONE_CELL, "'model' must be a table, got 3"),
        (HEAD + "zip = 3\n" + ONE_CELL, "'zip' must be written as [[zip]] blocks"),
        (HEAD + "[matrix]\nlayout = []\n", "matrix.layout is an empty list"),
        (HEAD + "[matrix]\nlayout = [3]\n", "layout must be a slug such as dp2-ep2, or auto; got 3"),
        (HEAD + '[matrix]\nmode = ["eager"]\n', "matrix.layout is missing"),
        (HEAD, "no cell is planned"),
        (HEAD + ONE_CELL + "[[exclude]]\nlayout = '*'\n", "no cell is planned"),
        (HEAD + ONE_CELL + "[[exclude]]\n", "exclude[0]: the block is empty"),
        (HEAD + ONE_CELL + "[[exclude]]\nlayout = 'foo'\n", "exclude[0]: layout 'foo'"),
        (
            HEAD + '[matrix]\nlayout = ["tp3"]\n',
            "rep x cp x tp = 3 does not divide the 4 ranks; nearest: 2 or 4",
        ),
        (HEAD + '[matrix]\nlayout = ["pp2"]\n', "pp (pipeline parallelism) is reserved and not yet built"),
        (HEAD + f'[matrix]\nlayout = ["{"x" * 10_000}"]\n', "(10000 characters)"),
        (HEAD + ONE_CELL + 'mode = "compile"\n', "mode must be eager or compiled, got 'compile'"),
        (HEAD + ONE_CELL + 'routing = "zipfy"\n', "routing must be natural, round_robin"),
        (HEAD + ONE_CELL + 'routing = "zipf:1.2.3"\n', "needs a number after the colon"),
        (HEAD + ONE_CELL + 'routing = "hot_rank:1.5"\n', "must be in (0, 1]"),
        (HEAD + ONE_CELL + "[[zip]]\nmodel.num_experts = [1, 2]\ntrain.seq_len = [1]\n", "have one length"),
        (HEAD + ONE_CELL + "[[zip]]\nmodel.num_experts = 4\n", "must be a list of at least one value"),
        (HEAD + ONE_CELL + "[[zip]]\nlayout = ['dp4']\n", "'layout' is on two axes"),
        (HEAD + ONE_CELL + "[[include]]\nmode = 'eager'\n", "include[0]: layout is missing"),
        (HEAD + ONE_CELL + "[[include]]\nlayout = 'tp4'\nexpect = 'bad'\n", "expect must be ok, oom or any"),
        (HEAD + ONE_CELL + "train.seq_len = [" + "8, " * 20_000 + "]\n", "20000 combinations are more than"),
        (HEAD + "[gate]\nprimary = 'speed'\n" + ONE_CELL, "gate.primary must be 'device_work_s' or 'step_s'"),
        (HEAD + 'device = "gpu"\n' + ONE_CELL, "device must be auto, cpu or cuda, got 'gpu'"),
        ('name = "t"\nworld_size = 4\n' + ONE_CELL, "'schema = 1' is missing"),
        ('schema = 2\nname = "t"\nworld_size = 4\n' + ONE_CELL, "of another number"),
        ("schema = 1\nworld_size = 4\n" + ONE_CELL, "name must be 1 to 64 letters"),
        ('schema = 1\nname = "../../x"\nworld_size = 4\n' + ONE_CELL, "name must be 1 to 64 letters"),
        ('schema = 1\nname = ".."\nworld_size = 4\n' + ONE_CELL, "name must be 1 to 64 letters"),
        (f'schema = 1\nname = "{"n" * 10_000}"\nworld_size = 4\n' + ONE_CELL, "(10000 characters)"),
        ('schema = 1\nname = "t"\n' + ONE_CELL, "world_size is missing"),
        ('schema = 1\nname = "t"\nworld_size = 0\n' + ONE_CELL, "whole number from 1 to 65536, got 0"),
        ('schema = 1\nname = "t"\nworld_size = "4"\n' + ONE_CELL, "whole number from 1 to 65536, got '4'"),
        ('schema = 1\nname = "t"\nworld_size = true\n' + ONE_CELL, "whole number from 1 to 65536, got True"),
        ("= 3", "not valid TOML: Invalid statement"),
        ("a = " + "[" * 5000, "not valid TOML: it is nested too deeply"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ('extends = "missing.toml"\nschema = 1\n', "missing.toml: cannot be read: no such file or directory"),
        ("extends = 3\nschema = 1\n", "extends must be a file name, got 3"),
    ],
)
def test_bad_scenario_is_one_sentence(write: Write, text: str, words: str) -> None:
    message = refusal(write(text))
    assert words in message
    assert "t.toml" in message or "missing.toml" in message


def test_extends_is_one_level(write: Write) -> None:
    write('extends = "c.toml"\n', "b.toml")
    assert "one level is allowed" in refusal(write('extends = "b.toml"\n', "a.toml"))
    assert "one level is allowed" in refusal(write('extends = "self.toml"\n', "self.toml"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml").endswith("none.toml: cannot be read: no such file or directory")
    assert "is a directory, not a file" in refusal(tmp_path)
    assert "cannot be read: file name too long" in refusal(tmp_path / ("n" * 10_000))
    assert "is not a possible path" in refusal("a\0b")
    binary = tmp_path / "latin.toml"
    binary.write_bytes(b"name = '\xe9'")
    assert "is not UTF-8 text (byte 8)" in refusal(binary)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    assert "is larger than 1 MiB" in refusal(large)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")


# ---- the scenarios that come with epbench ----


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
