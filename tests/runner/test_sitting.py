"""A canary before and after a run: what differs is said, what cannot be told apart is not."""

from pathlib import Path

import pytest

from epbench.records import CanaryRecord, MachineCheck, Spread
from epbench.runner.server import ForkServer
from epbench.runner.sitting import SittingLog, differences
from epbench.runner.spec import LaunchSpec
from epbench.runner.watch import LaunchEnd
from epbench.scenario import load_scenario
from tests.test_cli_run import QUICK, planned_run


def canary(**medians_ms: tuple[float, float]) -> CanaryRecord:
    """``name=(median, half the width of the middle half)`` in milliseconds."""
    seconds = {
        name: Spread(median=middle / 1e3, low=(middle - half) / 1e3, high=(middle + half) / 1e3)
        for name, (middle, half) in medians_ms.items()
    }
    return CanaryRecord(outcome="ok", seconds=seconds)


GEMM_SLOWER = "the machine changed during the run: the same gemm took 2 ms before and 2.5 ms after (+25 %)"


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (canary(gemm=(2.0, 0.1)), canary(gemm=(2.5, 0.1)), [GEMM_SLOWER]),
        (canary(gemm=(2.0, 0.1)), canary(gemm=(2.15, 0.01)), []),  # less than a tenth
        (canary(gemm=(2.0, 0.4)), canary(gemm=(2.5, 0.4)), []),  # too noisy to tell
        (
            canary(gemm=(2.0, 0.1), all_reduce=(1.0, 0.01)),
            canary(gemm=(2.0, 0.1), all_reduce=(0.8, 0.01)),
            ["the machine changed during the run: the same all_reduce took 1 ms before and 0.8 ms after (-20 %)"],
        ),
        (CanaryRecord(outcome="crashed", reason="x"), canary(gemm=(2.0, 0.1)), []),
        (None, canary(gemm=(2.0, 0.1)), []),
    ],
)
def test_what_counts_as_a_changed_machine(before: CanaryRecord | None, after: CanaryRecord, found: list[str]) -> None:
    assert differences(before, after) == found


def test_a_scenario_can_go_without(tmp_path: Path) -> None:
    scenario = load_scenario(QUICK)
    run = planned_run(scenario, tmp_path)
    measure = scenario.measure.model_copy(update={"canary": False})
    fit = MachineCheck(name="gpus", status="ok", found="2 x H200")
    busy = MachineCheck(name="idle", status="warn", found="GPU 1 is in use", fix="wait")
    log = SittingLog(run, measure, run.record.environment, checks=[fit, busy])
    with ForkServer({}, tmp_path / "server.log") as server:
        assert not log.begun
        assert log.begin(server, lambda: False) == ["idle: GPU 1 is in use"]
        assert log.end(server, lambda: False) == []
        assert server.process_id is None
    (sitting,) = run.record.sittings
    assert sitting.checks == [fit, busy]
    assert (sitting.canary_before, sitting.canary_after) == (None, None)
    assert run.record.warnings == ["idle: GPU 1 is in use"]


def test_a_canary_reads_nothing_of_one_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the first canary leaves its ranks' lines where the next sitting puts its own."""
    run = planned_run(load_scenario(QUICK), tmp_path)
    log = SittingLog(run, load_scenario(QUICK).measure, run.record.environment)
    found: list[list[Path]] = []

    def interrupted(_: ForkServer, spec: LaunchSpec, **__: object) -> LaunchEnd:
        found.append(sorted(spec.directory.glob("*")))
        spec.directory.mkdir(parents=True, exist_ok=True)
        spec.rank_log(0).write_text("as far as it came\n")
        return LaunchEnd(spec, 1.0, None, stop="interrupted")

    monkeypatch.setattr("epbench.runner.sitting.watch_launch", interrupted)
    with ForkServer({}, tmp_path / "server.log") as server:
        log.begin(server, lambda: True)
        run.write_run(run.record.model_copy(update={"sittings": []}))
        SittingLog(run, load_scenario(QUICK).measure, run.record.environment).begin(server, lambda: True)
    assert found == [[], []]
