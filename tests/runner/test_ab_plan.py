"""What an A/B compares and in which order, without launching: arms as typed, revisions, rows, turns, looks."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from epbench.ab_records import FILE, AbDirectory, AbRecord, ArmSpec, open_ab
from epbench.errors import EpbenchError, RunError, ScenarioError, StorageError
from epbench.gate_records import CellVerdict, MetricChange
from epbench.runner.ab_plan import AbOptions, PlannedArm, ab_record, arm_specs, planned_arms
from epbench.runner.arms import arm_variables, check_committed, option_values, parse_arm
from epbench.runner.checkouts import checked_out, find_checkout
from epbench.runner.interrupt import Interrupt
from epbench.runner.looks import is_decided
from epbench.runner.turns import Turn, take_turns
from epbench.scenario import Scenario, load_scenario
from epbench.store import open_run

SCENARIO = """
schema = 1
name = "two"
world_size = 2
device = "cpu"
[matrix]
layout = ["dp2", "dp2-ep3"]
mode = ["eager", "compiled"]
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return load_scenario(path).resolved("cpu")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package in ``src`` with two commits, the tags v1 and v2, and a branch with a slash in its name."""
    path = tmp_path_factory.mktemp("repository")
    git(path, "init", "--quiet")
    for version in ("v1", "v2"):
        (path / "src").mkdir(exist_ok=True)
        (path / "src" / "stack.py").write_text(f"VERSION = '{version}'\n")
        git(path, "add", ".")
        git(path, "commit", "--quiet", "-m", version)
        git(path, "tag", version)
    git(path, "branch", "topic/one", "v1")
    return path


def git(path: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", path, *who, *words], check=True, capture_output=True, text=True).stdout


# ---------------------------------------------------------------- arms


def test_kinds_of_an_arm_are_combined(repository: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/bin/sh")
    options = "mode=compiled,train.seq_len=64,train.stack=a.b:c;model.mlp_only_layers=[0,1]"
    arm = parse_arm([f"{venv}; {options}", f"{repository}@v1;env:NCCL_ALGO=Ring,Tree"], where="--head")
    assert arm.python == str(venv / "bin" / "python"), "the link, by whose place a venv is known"
    assert option_values(arm) == {
        "mode": "compiled", "train.seq_len": 64, "train.stack": "a.b:c", "model.mlp_only_layers": [0, 1],
    }  # fmt: skip
    assert arm.variables == {"NCCL_ALGO": "Ring,Tree"}
    (checkout,) = arm.checkouts
    assert (checkout.tree, checkout.commit) == (str(repository), git(repository, "rev-parse", "v1").strip())
    assert f"{repository}@v1 ({checkout.commit[:10]})" in arm.label


@pytest.mark.parametrize("given", [[], [""], [" ; "], ["as is"]])
def test_nothing_said_is_as_is(given: list[str]) -> None:
    assert parse_arm(given, where="--base") == ArmSpec(label="as is", given=tuple(given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dispatcher=dedup", "unknown key 'dispatcher'; did you mean 'train.dispatcher'?"),
        ("train.dispacher=dedup", "unknown key 'train.dispacher'; did you mean 'train.dispatcher'?"),
        ("world_size=4", "not one change of a cell"),
        ("layout=auto", "not one change of a cell"),
        ("mode=eager,mode=compiled", "mode is given twice"),
        ("env:NCCL ALGO=1", "a variable is written env:NAME=VALUE"),
        ("env:X", "a variable is written env:NAME=VALUE"),
        ("env:CUDA_VISIBLE_DEVICES=1", "CUDA_VISIBLE_DEVICES cannot differ"),
        ("/no/such/venv/bin/python", "neither an interpreter nor a git work tree"),
        ("/etc/passwd", "no interpreter that may be run"),
        ("no-such-branch", "has no revision 'no-such-branch'"),
        ("--upload-pack=x", "has no revision"),
        ("/usr/bin/env;/bin/sh", "one interpreter and one revision of a tree are an arm"),
        ("a\0b", "a NUL character"),
        ("\x1b[31m" + "x" * 5000, "has no revision"),
        ("{repository}@v3", "has no revision 'v3'"),
        ("{repository}/new@v1", "revision 'v1' of {repository} has no directory 'new/'"),
        ("{nowhere}@v1", "is no git work tree"),
    ],
)
def test_what_is_no_arm_is_one_sentence(
    given: str, said: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epbench.runner.arms.own_tree", lambda: repository)
    (repository / "new").mkdir(exist_ok=True)
    filled = given.replace("{repository}", str(repository)).replace("{nowhere}", str(tmp_path))
    with pytest.raises(ScenarioError) as caught:
        parse_arm([filled], where="--head")
    text = str(caught.value)
    assert text.startswith("--head: ")
    assert said.replace("{repository}", str(repository)) in text
    assert text.isprintable()
    assert len(text) < 600


def test_what_ranks_are_started_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/given")
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/shared")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/shared/triton")
    monkeypatch.chdir(tmp_path)
    arm = ArmSpec(label="", variables={"NCCL_ALGO": "Ring"})
    found = arm_variables(arm, "cpu", first=[Path("/tree")], cache=Path("/cache"))
    assert found["PYTHONPATH"] == f"/tree:{tmp_path}:/given"
    caches = (found["TORCHINDUCTOR_CACHE_DIR"], found["TRITON_CACHE_DIR"])
    assert caches == ("/cache", "/cache/triton"), "head would find what base has compiled in a person's own"
    assert (found["NCCL_ALGO"], found["PYTHONHASHSEED"]) == ("Ring", "0")
    assert found["PYTHONSAFEPATH"] == "1", "or python -m would put the current directory first"
    other = arm_variables(arm.model_copy(update={"python": "/p"}), "cpu", first=[], cache=Path("/cache"))
    assert other["PYTHONPATH"] == "/given", "an epbench that lies here is not that of another interpreter"


# ---------------------------------------------------------------- revisions


def test_work_trees_are_apart_and_gone_afterwards(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = [
        ("base", [find_checkout(repository / "src", "v1", where="--base")]),
        ("head", [find_checkout(repository / "src", "v2", where="--head")]),
    ]
    before = git(repository, "worktree", "list"), git(repository, "status", "--porcelain")
    for _ in range(2):  # the second one finds what the first left, as after a kill
        with checked_out(wanted, "name") as places:
            texts = {arm: (paths[0] / "stack.py").read_text() for arm, paths in places.items()}
            assert texts == {"base": "VERSION = 'v1'\n", "head": "VERSION = 'v2'\n"}
        left = tmp_path / "epbench" / "worktrees" / "name" / "base-0"
        assert not left.parent.exists()
        git(repository, "worktree", "add", "--detach", str(left), "v2")
    with pytest.raises(KeyboardInterrupt), checked_out(wanted, "name"):
        raise KeyboardInterrupt
    assert (git(repository, "worktree", "list"), git(repository, "status", "--porcelain")) == before


def test_what_a_killed_process_left_is_gone_and_what_another_uses_stays(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = git(repository, "worktree", "list")
    left = tmp_path / "epbench" / "worktrees" / "killed" / "head-0"
    git(repository, "worktree", "add", "--detach", str(left), "v1")
    wanted = [("base", [find_checkout(repository, "v1", where="--base")])]
    with checked_out(wanted, "one") as places:
        assert not left.parent.exists()
        with checked_out(wanted, "another"):
            assert places["base"][0].is_dir()
    assert git(repository, "worktree", "list") == before
    assert not list(left.parent.parent.iterdir())


def test_a_cache_that_cannot_be_written_is_one_sentence(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "epbench").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = [("base", [find_checkout(repository, "v1", where="--base")])]
    with pytest.raises(StorageError, match=r"cannot write '.*worktrees', where revisions are checked out: Not a dir"):
        checked_out(wanted, "one").__enter__()


def test_uncommitted_changes_that_would_take_no_part_are_told(repository: Path) -> None:
    arms = {name: parse_arm([f"{repository}@{name}"], where="--head") for name in ("v1", "v2", "topic/one")}
    as_is = parse_arm([], where="--base")
    file = repository / "src" / "stack.py"
    kept = file.read_text()
    file.write_text("VERSION = 'v3'\n")
    try:
        check_committed(as_is, arms["v2"])  # the changes are the other arm
        check_committed(arms["topic/one"], arms["v1"])  # nobody asked for the newest commit
        with pytest.raises(ScenarioError, match=r"--head: 'v2' is the newest commit of .* uncommitted changes"):
            check_committed(arms["v1"], arms["v2"])
    finally:
        file.write_text(kept)
    check_committed(arms["v1"], arms["v2"])


# ---------------------------------------------------------------- rows


def plan(scenario: Scenario, head: str, only: str | None = None) -> tuple[PlannedArm, PlannedArm]:
    return planned_arms(scenario, arm_specs(AbOptions(head=[head]), None), only, None)


def test_cells_belong_together_by_their_place(scenario: Scenario) -> None:
    arms = plan(scenario, "train.seed=3")
    record = ab_record(scenario, arms, None, None)
    assert [(one[:9], two[:9]) for one, two in record.pairs] == [("dp2-eager", "dp2-eager"), ("dp2-compi", "dp2-compi")]
    assert all(one != two for one, two in record.pairs)
    assert (record.seeds, record.launches, record.looks_taken) == ((0, 3), 5, 0)
    skipped = [entry.skip_reason for entry in arms[1].rows.values() if entry.skip_reason]
    assert len(skipped) == 2, "an illegal layout is a row of both arms"


@pytest.mark.parametrize(
    ("head", "only", "said"),
    [
        ("mode=compiled", None, r"--head makes one cell, dp2-compiled-.*, of dp2-eager-.* and dp2-compiled-.*--only"),
        ("train.dispatcher=dedup", None, "no cell runs in both arms: not yet: train.dispatcher = dedup"),
        ("train.seq_len=-1", None, "--head: train.seq_len must be greater than 0"),
        ("train.stack=nobody", None, "--head: no stack named 'nobody' is installed"),
        ("", "nothing*", r"--only 'nothing\*' fits none of 4 cells"),
    ],
)
def test_what_cannot_be_compared(scenario: Scenario, head: str, only: str | None, said: str) -> None:
    with pytest.raises(EpbenchError, match=said):
        plan(scenario, head, only)


def test_another_scenario_does_not_go_on_with_it(scenario: Scenario, reports: Path) -> None:
    there = open_ab("1111", reports_dir=reports)
    with pytest.raises(RunError, match="holds cells that this scenario does not have"):
        planned_arms(scenario, arm_specs(AbOptions(), there), None, there)


def test_only_fits_the_ids_of_either_arm(scenario: Scenario) -> None:
    base, head = plan(scenario, "mode=compiled", only="*-eager-*")
    assert [entry.cell.mode for entry in base.rows.values()] == ["eager"]
    assert [entry.cell.mode for entry in head.rows.values()] == ["compiled"]


# ---------------------------------------------------------------- turns


@dataclass
class FakeSession:
    """Needs one launch of a second a round, after a verification."""

    arm: str
    log: list[str]
    limit_s: float
    given: dict[str, int] = field(default_factory=dict)

    def rough_s(self, entry: Any, number: int) -> float:
        return float(self.given.get(entry.cell.id, -2) < number)

    def affords(self, entry: Any, number: int, progress: object, *, beside_s: float) -> bool:
        return len(self.log) + self.rough_s(entry, number) + beside_s <= self.limit_s

    def give(self, server: object, entry: Any, number: int, *, progress: object, interrupt: object) -> bool:
        if self.rough_s(entry, number):
            self.given[entry.cell.id] = number
            self.log.append(f"{self.arm} {entry.cell.mode[0]}{number if number >= 0 else 'v'}")
        return True


def turns(scenario: Scenario, limit_s: float) -> tuple[list[str], Any]:
    log: list[str] = []
    arms = plan(scenario, "")
    nothing: Any = None
    sessions: list[Any] = [FakeSession(arm, log, limit_s) for arm in ("base", "head")]
    pair = [Turn(session, nothing, nothing, arm.runnable) for session, arm in zip(sessions, arms, strict=True)]
    cells = list(arms[0].rows.values())
    return log, lambda launches: take_turns(pair[0], pair[1], cells, launches=launches, interrupt=Interrupt())


def test_launches_of_a_pair_are_neighbours_and_rounds_turn_round(scenario: Scenario) -> None:
    log, take = turns(scenario, 100)
    assert take(2)
    assert log == [
        "base ev", "head ev", "base e0", "head e0", "base cv", "head cv", "base c0", "head c0",
        "head c1", "base c1", "head e1", "base e1",
    ]  # fmt: skip
    assert take(3), "another look goes on where the first one ended"
    assert log[12:] == ["base e2", "head e2", "base c2", "head c2"]


@pytest.mark.parametrize(("limit_s", "made"), [(3, 2), (4, 4), (9, 8)])
def test_a_budget_cuts_no_pair_in_two(scenario: Scenario, limit_s: float, made: int) -> None:
    log, take = turns(scenario, limit_s)
    assert not take(2)
    assert len(log) == made


# ---------------------------------------------------------------- looks


def change(ratio_high: float | None, *, gated: bool = True, limit: float | None = 0.02) -> MetricChange:
    return MetricChange(
        metric="step_s", kind="timing", gated=gated, base=1.0, head=1.0, base_launches=5, head_launches=5,
        ratio_high=ratio_high, limit=limit, word="no change",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "changes", "decided"),
    [
        ("regression", [change(1.5)], True),
        ("improvement", [change(0.9)], True),
        ("broken", [], True),
        ("no change", [change(1.019)], True),  # all of the interval is below the limit
        ("no change", [change(1.021)], False),  # that it is no regression yet is no proof that there is none
        ("no change", [change(1.01), change(1.03)], False),
        ("no change", [change(1.01), change(1.03, gated=False)], True),
        ("inconclusive", [change(None)], False),
        ("inconclusive", [change(1.019)], False),  # an interval of three launches that scatter by more than may be
        ("inconclusive", [], False),  # too few valid launches: more may help
    ],
)
def test_what_the_second_look_is_for(word: Any, changes: list[MetricChange], decided: bool) -> None:
    cell = CellVerdict(
        cell="x", name="x", layout="dp2", mode="eager", routing="natural", base_outcome="ok", head_outcome="ok",
        word=word, metrics=changes,
    )  # fmt: skip
    assert is_decided(cell) is decided


# ---------------------------------------------------------------- arms.json


RECORD = AbRecord(
    scenario="two", base=ArmSpec(label="as is"), head=ArmSpec(label="v2"), pairs=(("a", "b"),), looks=(3, 5), launches=5
)


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Path]:
    for name in ("20261123T120000Z-two-ab-1111", "20261123T130000Z-two-ab-2222"):
        (tmp_path / name).mkdir()
        AbDirectory(tmp_path / name).write(RECORD)
    yield tmp_path


def test_an_ab_is_found_as_a_run_is(reports: Path) -> None:
    names = {name: open_ab(name, reports_dir=reports).path.name[-4:] for name in ("1111", "latest")}
    assert names == {"1111": "1111", "latest": "2222"}
    assert open_ab(reports / "20261123T120000Z-two-ab-1111").record == RECORD
    with pytest.raises(RunError, match="holds the two runs of an A/B: give its base or its head"):
        open_run(reports / "20261123T120000Z-two-ab-1111")
    with pytest.raises(RunError, match="there is no run under"):
        open_run("latest", reports_dir=reports)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("two", "fits 2 A/B runs"),
        ("three", "there is no A/B run 'three'"),
        ("", "there is no A/B run ''"),
        ("x" * 5000, "there is no A/B run 'xxx"),
        ("a\0b", "there is no A/B run 'a"),
    ],
)
def test_what_is_no_ab(reports: Path, name: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        open_ab(name, reports_dir=reports)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"launches": 5', '"launches": 6', "missing or damaged"),
        ('"schema_version": 1', '"schema_version": 9', "is of schema 9"),
        ("{", "", "missing or damaged"),
    ],
)
def test_a_damaged_record(reports: Path, old: str, new: str, said: str) -> None:
    path = reports / "20261123T120000Z-two-ab-1111"
    text = (path / FILE).read_text()
    assert old in text
    (path / FILE).write_text(text.replace(old, new, 1))
    with pytest.raises(RunError, match=said):
        open_ab(path)


def test_other_launches_only_before_anybody_looked(scenario: Scenario, reports: Path) -> None:
    there = open_ab("1111", reports_dir=reports)
    begun = there.record.model_copy(update={"looks": ()})
    there.write(begun)
    arms = plan(scenario, "")
    assert ab_record(scenario, arms, None, there) == ab_record(scenario, arms, 5, there) == begun
    assert ab_record(scenario, arms, 8, there) == begun.model_copy(update={"launches": 8})
    arm_specs(AbOptions(launches=8), there)
    there.write(begun.model_copy(update={"looks_taken": 1}))
    arm_specs(AbOptions(launches=5), there)
    with pytest.raises(RunError, match=r"was judged after 5 launches.*start a new A/B, with --launches 8 or two looks"):
        arm_specs(AbOptions(launches=8), there)


def test_the_last_look_ends_it() -> None:
    looks = [(0, ()), (1, ()), (1, ("b",)), (2, ("b",))]
    done = [RECORD.model_copy(update={"looks_taken": taken, "to_second_look": left}) for taken, left in looks]
    assert [record.is_complete for record in done] == [False, True, False, True]
