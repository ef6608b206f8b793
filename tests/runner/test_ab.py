"""Both arms launched for real: records and order, two looks, Ctrl-C and going on, other interpreters, revisions.

One run of eight launches serves most cases; one case starts fork servers of its own.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from epbench.ab_records import AbDirectory, ArmSpec, Checkout, open_ab
from epbench.analysis.arms import arm_of
from epbench.analysis.gate import Pair, judge
from epbench.cells import Cell, TrainSpec
from epbench.errors import RunError, ScenarioError
from epbench.gate_records import CellVerdict, GateSpec
from epbench.layout import Layout
from epbench.provenance import describe_environment
from epbench.runner.ab import AbOptions, AbOutcome, _changed, _check_imported, _same, _say_what, run_ab
from epbench.runner.checkouts import find_checkout
from epbench.runner.lock import locked
from epbench.runner.looks import undecided
from epbench.runner.probe import Probed, _is_idle, probe
from epbench.runner.server import ForkServer, _leave_out
from epbench.runner.spec import LaunchSpec
from epbench.scenario import load_scenario
from tests.runner.conftest import MEASURE, ROOT, lend, steady
from tests.runner.runs import gone, write_scenario
from tests.runner.test_interrupts import signalling

INJECTED = "train.stack=tests.runner.injected:slower_900_and_chattier_of_verifiable"


def ab_scenario(directory: Path, stack: str = "tests.runner.fake_stacks:verifiable", gate: str = "") -> Path:
    """One cell that runs, one that is illegal; warm-up long enough for what is injected to be there."""
    path = write_scenario(directory, ["verifiable"], launches=1)
    text = path.read_text().replace("tests.runner.fake_stacks:verifiable", stack)
    path.write_text(f"{text}\n[gate]\nprimary = 'step_s'\n{gate}\n")
    return path


def ab(scenario: Path, **options: object) -> AbOutcome:
    return run_ab(load_scenario(scenario), AbOptions(reports_dir=scenario.parent / "reports", **options))  # type: ignore[arg-type]


def probed_here(*_: object, specs: Sequence[LaunchSpec], **__: object) -> Probed:
    """The environment of this process: the sources of a shared checkout may change between two probes."""
    return Probed(describe_environment(specs[0].device, world_size=specs[0].cell.world_size), "here")


@pytest.fixture(scope="module")
def two_looks(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> AbDirectory:
    """Head is ten times as slow and makes a call more; the first look is made to leave the cell open."""
    with pytest.MonkeyPatch.context() as patch:
        steady(patch)
        lend(patch, server)
        patch.setattr("epbench.runner.ab.probe", probed_here)
        patch.setattr("epbench.runner.ab.undecided", lambda pairs, *_: [head for _, head in pairs])
        scenario = ab_scenario(tmp_path_factory.mktemp("ab"), gate="looks = [3, 4]")
        outcome = ab(scenario, head=[INJECTED])
    assert outcome.exit_code == 0
    return open_ab(outcome.path)


def test_each_arm_is_a_whole_run(two_looks: AbDirectory) -> None:
    record = two_looks.record
    assert (record.base.label, record.head.label) == ("as is", INJECTED)
    ((base_id, head_id),) = record.pairs
    for run, cell_id in ((two_looks.base, base_id), (two_looks.head, head_id)):
        cells = {cell.cell: cell for cell in run.view().cells}
        assert cells.pop(cell_id).outcome == "ok"
        assert [cell.outcome for cell in cells.values()] == ["skipped"]
        assert run.record.gate is not None
        assert run.record.gate.looks == (3, 4)
        assert len(list(run.cell_path(cell_id).glob("verify/launch.json"))) == 1
    assert two_looks.head.view().cells[0].train["stack"].startswith("tests.runner.injected:")
    assert not (two_looks.path / ".compiled").exists()


def test_launches_alternate_and_turn_round(two_looks: AbDirectory) -> None:
    events = [
        (event["order"], event["kind"][0], name)
        for name, run in (("base", two_looks.base), ("head", two_looks.head))
        for event in map(json.loads, (run.path / "events.jsonl").read_text().splitlines())
        if event["event"] == "launch"
    ]
    assert [f"{kind} {name}" for _, kind, name in sorted(events)] == [
        "v base", "v head", "m base", "m head", "m head", "m base", "m base", "m head", "m head", "m base",
    ]  # fmt: skip
    assert (two_looks.record.looks_taken, len(two_looks.record.to_second_look)) == (2, 1)


def test_rounds_are_pairs_and_what_was_injected_is_found(two_looks: AbDirectory) -> None:
    verdict = judged(two_looks, launches=3)
    step = next(change for change in verdict.metrics if change.metric == "step_s")
    assert step.paired
    assert (step.base_launches, step.head_launches) == (3, 3)
    assert step.ratio is not None
    assert step.ratio > 2
    counts = next(change for change in verdict.metrics if change.metric == "collective_count")
    assert counts.base is not None
    assert (counts.head, counts.word) == (counts.base + 1, "regression")
    assert verdict.word == "regression"


def judged(found: AbDirectory, *, launches: int) -> CellVerdict:
    ((base_id, head_id),) = found.record.pairs
    base, head = found.base.read_result(base_id), found.head.read_result(head_id)
    assert base is not None
    assert head is not None
    arms = [arm_of(cell, source="ab", launches=launches) for cell in (base, head)]
    (verdict,) = judge([Pair(head, "x", arms[0], arms[1])], GateSpec(primary="step_s")).cells
    return verdict


def test_a_cell_that_is_slower_for_sure_needs_no_second_look(two_looks: AbDirectory) -> None:
    pairs, spec = two_looks.record.pairs, GateSpec(primary="step_s", looks=(3, 4))
    rows = [{cell.cell: cell for cell in run.view().cells} for run in (two_looks.base, two_looks.head)]
    assert undecided(pairs, rows[0], rows[1], spec) == []
    ((base_id, _),) = pairs
    assert undecided([(base_id, base_id)], rows[0], rows[0], spec) == [], "the very same launches: no growth at all"


def test_looks_are_fixed_and_arms_are_kept(two_looks: AbDirectory) -> None:
    scenario = two_looks.path.parent.parent / "scenario.toml"
    for options, said in (({"launches": 9}, "fixed in advance"), ({"head": ["mode=eager"]}, "has other arms")):
        with pytest.raises(RunError, match=said):
            ab(scenario, resume=two_looks.path, **options)


def test_launches_that_are_gone_are_made_and_looked_at_again_by_the_gate_that_it_began_with(
    two_looks: AbDirectory, server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch)
    lend(monkeypatch, server)
    monkeypatch.setattr("epbench.runner.ab.probe", probed_here)
    copy = AbDirectory(tmp_path / "copy")
    shutil.copytree(two_looks.path, copy.path)
    for number in (2, 3):
        shutil.rmtree(copy.head.cell_path(copy.record.pairs[0][1]) / f"launch-{number}")
    outcome = ab(ab_scenario(tmp_path, gate="practical_limit = 10"), resume=copy.path)
    assert outcome.exit_code == 0
    record = copy.record
    assert (record.looks_taken, record.to_second_look) == (1, ()), "slower for sure, by the limit that it began with"


def test_a_second_parent_waits_before_it_touches_anything(two_looks: AbDirectory) -> None:
    scenario = two_looks.path.parent.parent / "scenario.toml"
    with (
        pytest.MonkeyPatch.context() as patch,
        locked(two_looks.path),
        pytest.raises(RunError, match=f"is being run by process {os.getpid()} on"),
    ):
        patch.setattr("epbench.runner.ab.checked_out", None)
        ab(scenario, resume=two_looks.path)


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = ab_scenario(tmp_path)
    with pytest.raises(ScenarioError, match="--head: '/bin/sh' cannot be an arm"):
        ab(scenario, head=["/bin/sh"])
    assert list((tmp_path / "reports").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the run directory under"):
        run_ab(load_scenario(scenario), AbOptions(reports_dir=tmp_path / "file"))


def test_ctrl_c_once_a_budget_and_going_on(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steady(monkeypatch)
    lend(monkeypatch, server)
    monkeypatch.setattr("epbench.runner.ab.probe", probed_here)
    scenario = ab_scenario(tmp_path)
    with monkeypatch.context() as patch:
        signalling(patch, "epbench.runner.session.write_launch", signal.SIGINT)
        outcome = ab(scenario)
    assert outcome.exit_code == 130
    assert f"go on with: epbench ab {scenario} --resume {outcome.path}" in capsys.readouterr().err
    made = {path: path.stat().st_mtime_ns for path in outcome.path.glob("*/cells/*/*/launch.json")}
    assert len(made) == 1, "the launch that ran was finished"
    compiled = outcome.path / ".compiled"
    compiled.mkdir()
    assert ab(scenario, resume=outcome.path, budget_s=0.0).exit_code == 0
    assert f"launches are left to make; go on with: epbench ab {scenario} --resume" in capsys.readouterr().err
    assert compiled.exists(), "launches of one arm would be compared across a cold cache"
    here = Probed(describe_environment("cpu", world_size=2), "here")
    answers = iter([here, here, here, Probed(here.environment.model_copy(update={"code": "edited"}), "here")])
    monkeypatch.setattr("epbench.runner.ab.probe", lambda *_, **__: next(answers))
    assert ab(scenario, resume=outcome.path).exit_code == 0
    assert not compiled.exists()
    said = capsys.readouterr().err
    assert "go on with" not in said
    assert "head: warning: the arm changed while it was measured (code): its launches may be of either" in said
    assert [len(run.view().warnings) for run in (open_ab(outcome.path).base, open_ab(outcome.path).head)] == [0, 1]
    assert all(path.stat().st_mtime_ns == before for path, before in made.items())
    record = open_ab(outcome.path).record
    assert (record.looks_taken, record.is_complete) == (1, True)
    assert len(list(outcome.path.glob("*/cells/*/result.json"))) == 2


def test_a_server_that_dies_with_an_order_unread_is_dead(tmp_path: Path) -> None:
    server = ForkServer({}, tmp_path / "log")
    server._socket, theirs = socket.socketpair()
    server._send({"end": True})
    theirs.close()
    assert server.wait(1) == {"ended": None, "died": True}
    server.close()


# ---------------------------------------------------------------- interpreters and revisions

STACK = """
from tests.runner.fake_stacks import VerifiableStep

VERSION = {version}
build = VerifiableStep
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "--quiet", path], check=True)
    for version in (1, 2):
        (path / "stack_under_test.py").write_text(STACK.format(version=version))
        for words in (["add", "."], ["commit", "--quiet", "-m", "x"]):
            subprocess.run(["git", "-C", path, *who, *words], check=True)
    return path


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This one under another name, which says in the ranks' environment that it was used."""
    path = tmp_path_factory.mktemp("venv") / "bin" / "python"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nGLOO_OTHER=1 exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def test_an_interpreter_and_revisions(
    repository: Path, interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spawned, spawn = [], ForkServer._spawn

    def spawn_and_tell(server: ForkServer) -> None:
        spawn(server)
        assert server.process_id is not None
        spawned.append(server.process_id)

    monkeypatch.setattr(ForkServer, "_spawn", spawn_and_tell)
    scenario = ab_scenario(tmp_path, stack="stack_under_test:build")
    outcome = ab(scenario, base=[f"{repository}@HEAD~1"], head=[f"{interpreter};{repository}@HEAD", "env:OMP_X=7"])
    found = open_ab(outcome.path)
    assert outcome.exit_code == 0
    assert [run.view().cells[0].outcome for run in (found.base, found.head)] == ["ok", "ok"]
    base, head = found.base.record.environment, found.head.record.environment
    assert base.code != head.code
    assert {name: head.variables.get(name) for name in ("GLOO_OTHER", "OMP_X")} == {"GLOO_OTHER": "1", "OMP_X": "7"}
    assert not {"GLOO_OTHER", "OMP_X"} & base.variables.keys()
    assert len(spawned) == 2
    assert gone(spawned)
    assert not list((tmp_path / "epbench" / "worktrees").iterdir())


def side(code: str, *checkouts: Checkout) -> Any:
    environment = describe_environment("cpu", world_size=2).model_copy(update={"code": code})
    return SimpleNamespace(
        arm=SimpleNamespace(name="head", spec=ArmSpec(label="v2", checkouts=checkouts)),
        probed=Probed(environment, "here"),
    )


@pytest.mark.parametrize(
    ("head", "said"), [({0, 1}, "2 cells in both arms"), ({1}, "1 cell in both arms, by turns, 1 in one only")]
)
def test_cells_of_one_arm_only_are_not_said_to_be_in_both(
    head: set[int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: Any = [side("x"), side("x")]
    for one, rows in zip(sides, ({0, 1}, head), strict=True):
        one.arm.runnable = dict.fromkeys(rows)
    ab = SimpleNamespace(path=tmp_path, record=SimpleNamespace(pairs=[("a", "a"), ("b", "b")]))
    lines: list[str] = []
    _say_what(SimpleNamespace(say=lines.append), ab, sides)  # type: ignore[arg-type]
    assert said in lines[0]


def test_an_arm_that_is_broken_meanwhile_loses_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Probed:
        raise ScenarioError("--head: SyntaxError")

    monkeypatch.setattr("epbench.runner.ab.probe", broken)
    monkeypatch.setattr("epbench.runner.ab._orders", lambda *_: [])
    head: Any = side("x")
    head.variables = {}
    assert _changed(head, tmp_path) == [
        "the arm changed while it was measured, and cannot be asked any more what it is (--head: SyntaxError)"
    ]


def test_a_revision_that_changes_nothing_is_told(repository: Path) -> None:
    checkout = find_checkout(repository, "HEAD", where="--head")
    (warning,) = _same(side("x", checkout), side("x"))
    assert (warning.status, warning.found[:25]) == ("warn", "v2 has the same epbench a")
    assert _same(side("x"), side("x", checkout)) == [], "an A/A has no revision"
    assert _same(side("x", checkout), side("y")) == []


def test_a_revision_of_epbench_that_would_not_be_imported(tmp_path: Path) -> None:
    checkout = Checkout(tree=str(ROOT), revision="v0", commit="c0")
    arm = side("x", checkout).arm
    _check_imported(arm, str(tmp_path / "epbench"), [tmp_path])
    with pytest.raises(ScenarioError, match=r"--head: there is no epbench in revision 'v0' of .*imported is /else"):
        _check_imported(arm, "/else/epbench", [tmp_path])
    other = checkout.model_copy(update={"tree": str(tmp_path)})
    _check_imported(side("x", other).arm, "/else/epbench", [tmp_path])


PACKAGE = {
    "epbench/records.py": "PROTOCOL_VERSION = 2\nSCHEMA_VERSION = 1\n",
    "epbench/__init__.py": "",
}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (PACKAGE, "is of protocol 2, this one of 3: numbers of two ways of measuring are never compared"),
        ({"epbench.py": ""}, "has no epbench that can be an arm"),
        ({"epbench/__init__.py": "raise ImportError('a \\x1b[31m b')"}, "cannot be an arm: .ImportError: a"),
        ({"epbench/__init__.py": "print('epbench: no json'); raise SystemExit"}, "cannot be an arm: 'it said nothing'"),
        ({"epbench/__init__.py": "print('epbench: {}'); raise SystemExit"}, "cannot be an arm: 'it said nothing'"),
    ],
)
def test_an_epbench_that_cannot_be_an_arm(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ScenarioError, match=said) as caught:
        probe_at(tmp_path)
    assert str(caught.value).isprintable()


@pytest.fixture
def older(tmp_path: Path) -> Callable[[str], Path]:
    """An older epbench of the same protocol, without one key of today's orders; the directory that it is in."""
    return lambda key: without(tmp_path, key)


def without(directory: Path, key: str) -> Path:
    text = (ROOT / "epbench" / "runner" / "spec.py").read_text()
    assert f"    {key}: " in text
    lines = [line for line in text.splitlines() if not line.startswith(f"    {key}: ")]
    runner = directory / "epbench" / "runner"
    runner.mkdir(parents=True)
    for source, target in ((ROOT / "epbench", runner.parent), (ROOT / "epbench" / "runner", runner)):
        for path in source.iterdir():
            if path.name not in ("runner", "spec.py"):
                (target / path.name).symlink_to(path)
    (runner / "spec.py").write_text("\n".join(lines))
    return directory


def test_orders_that_an_arm_cannot_do_without(older: Callable[[str], Path]) -> None:
    with pytest.raises(ScenarioError, match="does not know detailed of this epbench's orders"):
        probe_at(older("detailed"))


def test_a_key_that_is_new_and_at_its_default_is_left_out(older: Callable[[str], Path], tmp_path: Path) -> None:
    assert probe_at(older("rendezvous")).new_keys == ("rendezvous",)
    order = tmp_path / "spec.json"
    order.write_text('{"a": 1, "cell": {"train": {"lr": 1, "seed": 2}}}')
    _leave_out(order, ["a", "cell.train.lr", "nothing"])
    assert json.loads(order.read_text()) == {"cell": {"train": {"seed": 2}}}


@pytest.mark.parametrize(
    ("key", "idle"),
    [("cell.train.lr", True), ("nodes", True), ("measure.min_steps", False), ("cell.layout.dp_shard", False),
     ("index", False), ("cell.train.seed", False)],
)  # fmt: skip
def test_only_what_no_order_sets_can_be_left_out(key: str, idle: bool, tmp_path: Path) -> None:
    seeded = Cell(layout=Layout(dp_shard=2), train=TrainSpec(seed=1))
    specs = [spec_at(tmp_path), spec_at(tmp_path).model_copy(update={"cell": seeded})]
    assert _is_idle(key, specs) is idle


def test_the_orders_of_all_cells_are_read(tmp_path: Path) -> None:
    variables = dict(os.environ) | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    good = spec_at(tmp_path)
    unknown = good.model_copy(update={"kind": "of a later epbench"})
    with pytest.raises(ScenarioError, match="does not know kind of"):
        probe(ArmSpec(label="x"), variables, specs=[good, unknown], where="--head")


def spec_at(path: Path) -> LaunchSpec:
    return LaunchSpec(
        cell=Cell(layout=Layout(dp_shard=2)), kind="measure", index=0, order=0, device="cpu", measure=MEASURE,
        directory=path,
    )  # fmt: skip


def probe_at(path: Path) -> Probed:
    variables = dict(os.environ) | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    return probe(ArmSpec(label="x"), variables, specs=[spec_at(path)], where="--head")
