"""The real worker in two gloo processes, well and misbehaving: outcome, reason, and nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from epbench.runner.launched import first_losses, measured
from epbench.runner.outcome import Verdict, judge
from epbench.runner.processes import descendants
from epbench.runner.server import ForkServer
from epbench.runner.spec import LaunchSpec
from epbench.runner.watch import LaunchEnd, watch_launch
from tests.runner.conftest import MEASURE, ROOT, make_spec, variables_of_tests


def launch(server: ForkServer, spec: LaunchSpec, *, interrupted: bool = False) -> tuple[LaunchEnd, Verdict]:
    end = watch_launch(server, spec, interrupted=lambda: interrupted, on_progress=lambda _: None)
    assert server.process_id is not None
    assert descendants(server.process_id) == [], "a launch left processes behind"
    return end, judge(end)


def test_a_good_launch_gives_every_pass(server: ForkServer, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "good", detailed=True)
    end, verdict = launch(server, spec)
    assert verdict == Verdict("ok"), (tmp_path / "stderr.log").read_text()
    record = measured(end, verdict, environment="e")
    assert record.value is not None
    assert record.memory is not None
    steps = [tail.results["timing"]["steps_s"] for tail in end.tails]
    slowest = sorted(map(max, zip(*steps, strict=True)))
    assert record.value.step_s == pytest.approx((slowest[1] + slowest[2]) / 2)
    assert record.value.steps == 4
    assert len(record.losses) == 5
    assert sorted(path.name for path in spec.trace_directory.iterdir()) == ["rank-0.json.gz", "rank-1.json.gz"]
    passes = ["build", "warmup", "timing", "memory", "routing", "trace"]
    assert list(record.phases_s) == ["start_up", *passes, "teardown", "analysis"]
    assert sum(record.phases_s.values()) == pytest.approx(record.elapsed_s, rel=0.01)
    assert min(record.phases_s.values()) > 0


@pytest.mark.parametrize(("stack", "passed"), [("verifiable", True), ("good", False)])
def test_a_launch_that_verifies(server: ForkServer, tmp_path: Path, stack: str, passed: bool) -> None:
    end, verdict = launch(server, make_spec(tmp_path, stack, kind="verify"))
    record = measured(end, verdict, environment="e")
    assert record.verify is not None
    assert record.verify.scope == "loss"
    assert record.verify.passed is passed
    stages = ["verify_reference", "verify_layout", "verify_own_dtype"]
    assert list(record.phases_s) == ["start_up", *stages, "teardown", "analysis"]
    assert sum(record.phases_s.values()) == pytest.approx(record.elapsed_s, rel=0.01)


def test_a_launch_has_a_total_time(server: ForkServer, tmp_path: Path) -> None:
    measure = MEASURE.model_copy(update={"launch_timeout_s": 0.01})
    _, verdict = launch(server, make_spec(tmp_path, "good", measure=measure))
    assert verdict.outcome == "timeout"
    assert verdict.reason is not None
    assert verdict.reason.startswith("not done after 0.01 s")


def test_an_interrupted_launch_ends_at_once(server: ForkServer, tmp_path: Path) -> None:
    end, verdict = launch(server, make_spec(tmp_path, "hanging_in_warmup"), interrupted=True)
    assert verdict.outcome == "interrupted"
    assert end.elapsed_s < MEASURE.progress_timeout_s


def test_a_loss_that_is_not_finite_is_no_value(server: ForkServer, tmp_path: Path) -> None:
    end, verdict = launch(server, make_spec(tmp_path, "not_finite"))
    record = measured(end, verdict, environment="e")
    assert not record.valid
    assert record.value is not None
    assert record.value.invalid_reason == "the loss was not finite within the first steps"
    assert "NaN" not in (tmp_path / "rank-0.jsonl").read_text()
    assert first_losses([12.5, None, 12.25]) == [12.5], "the third is not the second"


def test_the_same_worker_under_the_torchrun_command(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "good")
    spec.path.write_text(spec.model_dump_json())
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "epbench.runner.worker"]
    done = subprocess.run(
        [sys.executable, *command, str(spec.path)], env=variables_of_tests(), cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    for rank in range(2):
        lines = [json.loads(line) for line in spec.rank_log(rank).read_text().splitlines()]
        assert lines[-1]["phase"] == "done"
