"""Scenario files as text: what extends another, what comes out again as it went in, and every kind of bad input."""

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.scenario import load_scenario
from epbench.scenario_file import to_toml
from tests.scenarios import HEAD, ONE_CELL, Write, names, refusal

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
