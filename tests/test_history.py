"""The history: what enters it and how often, what is read back, what is said of it, and ways out."""

import csv
import io
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from epbench.cells import Cell
from epbench.errors import RunError
from epbench.history.adding import BENCHMARKS, add_nights, benchmark_nights, run_nights
from epbench.history.export import history_csv, pytorch_records
from epbench.history.lines import history_path, read_history
from epbench.history.series import Series, changes_since, read_store, series_of, trend_of
from epbench.records import PROTOCOL_VERSION
from tests.command_line import epbench
from tests.nights import CELL, EP_CELL, failed_cell, night_cell, night_run, night_view, started
from tests.report.sample import HOSTILE, environment

SCENARIO = "made-up-sizes"
BENCHMARK = {
    "machine_info": {"node": "host-a", "python_version": "3.12.3", "cpu": {"brand_raw": "AMD EPYC 9654"}},
    "commit_info": {"id": "0123456789abcdef0123", "branch": "main"},
    "datetime": "2026-11-20T02:30:00+00:00",
    "version": "5.1.0",
    "benchmarks": [
        {
            "name": "router[tokens=4096,experts=128]",
            "fullname": "tests/perf/test_router.py::router[tokens=4096,experts=128]",
            "extra_info": {"device": "NVIDIA H200", "torch": "2.11.0"},
            "stats": {"median": 0.00125, "mean": 0.0013, "rounds": 20},
        },
        {"name": "permute", "fullname": "a", "extra_info": {}, "stats": {"median": 0.002}},
        {"name": "broken", "fullname": "b", "extra_info": {}, "stats": {"median": None}},
    ],
}


def filled(store: Path, works: list[float], *, cell: Cell = CELL) -> None:
    """A night for each device work."""
    for night, work_s in enumerate(works):
        add(store, night, night_cell(work_s, cell=cell))


def add(store: Path, night: int, *cells: object, **fields: object) -> int:
    view = night_view(night, *cells, **fields)  # type: ignore[arg-type]
    return add_nights(store, SCENARIO, run_nights(view, f"night-{night}")).added


def only_series(store: Path) -> Series:
    (series,) = read_store(store)[0]
    return series


def noisy(nights: int, *, slow_from: int | None = None) -> list[float]:
    values = 0.2 * np.exp(np.random.default_rng(7).normal(0.0, 0.005, nights))
    return [
        float(value) * (1.05 if slow_from is not None and at >= slow_from else 1.0) for at, value in enumerate(values)
    ]


# ---------------------------------------------------------------- adding and reading


def test_nights_are_read_back_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path, [0.2, 0.21])
    series = only_series(tmp_path)
    assert [night.started for night in series.nights] == [started(0), started(1)]
    assert series.values("device_work_s") == pytest.approx([0.2, 0.21])
    assert series.values("step_s") == pytest.approx([0.22, 0.231])
    assert series.values("peak_allocated_bytes")[0] == night_cell(0.2).peak_allocated_bytes
    assert [len(night.timings["step_s"]) for night in series.nights] == [5, 5]
    assert series.environments[0].machine == ["host-a GPU-1a2b3c4d GPU-5e6f7a8b"]


def test_a_run_is_added_once_and_a_resumed_one_completed(tmp_path: Path) -> None:
    assert add(tmp_path, 0, night_cell(0.2)) == 1
    assert add(tmp_path, 0, night_cell(0.2)) == 0
    assert add(tmp_path, 0, night_cell(0.2), night_cell(0.1, cell=EP_CELL)) == 1
    assert (
        len(history_path(tmp_path, SCENARIO).read_text().splitlines()) == 1 + 2 + 1 + 2
    )  # head, cells, machine, nights


def test_what_was_not_measured_has_no_value_and_what_was_not_run_no_night(tmp_path: Path) -> None:
    add(tmp_path, 0, night_cell(0.2), failed_cell("skipped", "illegal", EP_CELL))
    add(tmp_path, 1, failed_cell("oom", "rank 2: out of memory"))
    add(tmp_path, 2, failed_cell("interrupted", "Ctrl-C"))
    series = only_series(tmp_path)
    assert [night.outcome for night in series.nights] == ["ok", "oom"]
    assert series.values("step_s") == [pytest.approx(0.22), None]


def test_a_setting_that_an_older_version_did_not_know_parts_no_series(tmp_path: Path) -> None:
    new = night_cell(0.2)
    old = new.model_copy(update={"train": {key: new.train[key] for key in new.train if key != "overlap"}})
    other = new.model_copy(update={"train": new.train | {"lr": 0.5}})
    assert [add(tmp_path, night, cell) for night, cell in enumerate((old, new, other))] == [1, 1, 1]
    assert sorted(len(one.nights) for one in read_store(tmp_path)[0]) == [1, 2]


def test_another_gpu_or_protocol_is_another_series_and_other_software_is_not(tmp_path: Path) -> None:
    machine = environment()
    add(tmp_path, 0, night_cell(0.2))
    add(tmp_path, 1, night_cell(0.2), machine=machine.model_copy(update={"torch": "2.12.0", "driver": "580.2"}))
    add(tmp_path, 2, night_cell(0.2), machine=machine.model_copy(update={"device_name": "NVIDIA H100"}))
    add(tmp_path, 3, night_cell(0.2), protocol=PROTOCOL_VERSION + 1)
    series = read_store(tmp_path)[0]
    assert [len(one.nights) for one in series] == [2, 1, 1]
    assert changes_since(series[0]) == [[], ["torch 2.11.0+cu130 → 2.12.0", "driver 570.1 → 580.2"]]


def test_several_jobs_add_at_the_same_time(tmp_path: Path) -> None:
    """Eight at once, each with the same ten nights: no line is torn, none is doubled. The lock is one of open files."""
    nights = [run_nights(night_view(night, night_cell(0.2)), f"night-{night}") for night in range(10)]

    def job(_: int) -> int:
        return sum(add_nights(tmp_path, SCENARIO, found).added for found in nights)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(job, range(8))) == 10
    found = read_history(history_path(tmp_path, SCENARIO))
    assert (len(found.nights), found.damaged) == (10, 0)


NIGHT = '{"kind":"night","run":"x","started":"","outcome":"ok","cell":"a","environment":"b"'
DAMAGE = {
    "torn": NIGHT,
    "merge": "<<<<<<< HEAD",
    "of a cell that nobody described": NIGHT + "}",
    "another kind": '{"kind":"morning"}',
    "no object": "[1, 2]",
    "not a number": NIGHT + ',"counters":{"a":NaN}}',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_left_out_and_told(tmp_path: Path, line: str) -> None:
    filled(tmp_path, [0.2, 0.21])
    path = history_path(tmp_path, SCENARIO)
    path.write_text(path.read_text() + line)  # without a newline, as a power cut leaves it
    add(tmp_path, 2, night_cell(0.22))
    series, warnings = read_store(tmp_path)
    assert [len(one.nights) for one in series] == [3]
    assert warnings == [f"1 line of '{path}' cannot be read and is left out"]


REFUSED = {
    "is no history": '{"kind":"night"}\n',
    "schema 99": '{"kind":"history","scenario":"x","schema_version":99}\n',
}


@pytest.mark.parametrize(("said", "text"), REFUSED.items())
def test_what_is_no_history_is_refused_in_a_sentence(tmp_path: Path, said: str, text: str) -> None:
    history_path(tmp_path, SCENARIO).write_text(text)
    with pytest.raises(RunError, match=said):
        read_store(tmp_path)
    with pytest.raises(RunError, match=said):
        add(tmp_path, 0, night_cell(0.2))


@pytest.mark.parametrize("name", ["quick", "a/b", "..", "x" * 300, HOSTILE, "", ".hidden"])
def test_a_scenario_of_any_name_has_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    path = history_path(tmp_path, name)
    assert path.parent == tmp_path
    assert path.name.isprintable()
    assert (path == tmp_path / "quick.jsonl") == (name == "quick")


# ---------------------------------------------------------------- benchmarks


def test_benchmarks_are_series(tmp_path: Path) -> None:
    path = tmp_path / "perf.json"
    path.write_text(json.dumps(BENCHMARK))
    assert add_nights(tmp_path, BENCHMARKS, benchmark_nights(path)).added == 2  # one has no median
    assert add_nights(tmp_path, BENCHMARKS, benchmark_nights(path)).added == 0
    router, permute = read_store(tmp_path)[0]
    assert (router.name, router.values("seconds")) == ("router[tokens=4096,experts=128]", [0.00125])
    assert [one.environments[0].device_name for one in (router, permute)] == ["NVIDIA H200", "AMD EPYC 9654"]
    assert [one.environments[0].device for one in (router, permute)] == ["cuda", "cpu"], "a processor is no GPU"
    assert (router.nights[0].run, router.environments[0].torch) == ("0123456789ab 2026-11-20T02:30:00+00:00", "2.11.0")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"benchmarks": 3}', '{"benchmarks": [], "datetime": 1}', "[" * 100_000, '{"benchmarks": [1]}'],
)
def test_what_pytest_benchmark_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "perf.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"perf\.json' is (no whole JSON|not what pytest-benchmark writes)"):
        benchmark_nights(path)


# ---------------------------------------------------------------- what is said


def test_trend_names_the_night_of_a_change_and_the_alarm(tmp_path: Path) -> None:
    filled(tmp_path, noisy(40, slow_from=38))
    trend = trend_of(only_series(tmp_path), "device_work_s")
    assert dict(trend.alarms) == {39: "slower"}
    assert [change.index for change in trend.changes] in ([37], [38])  # three nights make a level
    assert trend.tonight is not None
    assert trend.tonight.ratio == pytest.approx(1.05, abs=0.015)


def test_show_prints_alarm_change_and_what_else_changed_that_night(tmp_path: Path) -> None:
    for night, work_s in enumerate(noisy(30, slow_from=20)):
        torch = "2.11.0" if night < 20 else "2.12.0"
        add(tmp_path, night, night_cell(work_s), machine=environment().model_copy(update={"torch": torch}))
    result = epbench("history", "show", "--store", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "dp4 eager, device_work_s: +5." in result.stdout
    assert "from 2026-09-21 on (night-20), p 0.005; that night torch 2.11.0 → 2.12.0" in result.stdout
    assert "ALARM: more" in result.stdout
    assert result.stderr == f"next: epbench report RUN --history {tmp_path}\n"


def test_show_json_has_every_night(tmp_path: Path) -> None:
    filled(tmp_path, noisy(14))
    found = json.loads(epbench("history", "show", "--store", str(tmp_path), "--json", "--metric", "step_s").stdout)
    (series,) = found["series"]
    assert (series["cell"], series["metric"], len(series["nights"])) == (CELL.id, "step_s", 14)
    assert series["tonight"]["word"] == "quiet"


def test_names_of_foreign_origin_are_cleaned(tmp_path: Path) -> None:
    hostile = night_cell(0.2).model_copy(update={"layout": HOSTILE + "x" * 10_000})
    for night in range(3):
        view = night_view(night, hostile, machine=environment().model_copy(update={"torch": f"\u202e{night}"}))
        add_nights(tmp_path, SCENARIO, run_nights(view, f"\x1b[31m{night}"))
    result = epbench("history", "show", "--store", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\u202e", "\u2028"} & set(result.stdout)
    assert len(result.stdout) < 5000


MISTAKES = {
    ("add",): "history add needs a RUN, or --benchmark FILE",
    ("add", "nowhere"): "there is no run 'nowhere', neither as a path nor under 'reports'",
    ("show", "--store", "nowhere"): "there is no history 'nowhere'; make one with: epbench history add RUN --store DIR",
    ("show", "--cell", "zzz"): f"no cell of this history matches 'zzz'; known: {CELL.id}",
    (
        "show",
        "--scenario",
        "made-up-size",
    ): "this history has no scenario 'made-up-size'; did you mean 'made-up-sizes'?",
    ("show", "--metric", "step"): "no night has 'step'; metrics: ",
    ("show", "--limit", "-1"): "--limit is a share between 0 and 10 (0.015 is 1.5 %), got -1.0",
    ("export", "--format", "xml"): "--format must be pytorch or csv, got 'xml'",
    ("export", "--format", "csv", "--metric", "step"): "no night has 'step'; did you mean 'step_s'?",
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.items(), ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filled(Path("history"), [0.2])
    result = epbench("history", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"epbench: {said}")
    assert result.stderr.count("\n") == 1


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    run = night_run(tmp_path / "reports", night_view(0, night_cell(0.2)))
    result = epbench("history", "add", str(run.path), "--store", str(tmp_path / "store"))
    assert result.exit_code == 6
    assert result.stderr.startswith("epbench: cannot write '")


def test_add_says_what_it_did(tmp_path: Path) -> None:
    run = night_run(tmp_path / "reports", night_view(0, night_cell(0.2), night_cell(0.1, cell=EP_CELL)))
    (tmp_path / "perf.json").write_text(json.dumps(BENCHMARK))
    store = tmp_path / "store"
    arguments = ("history", "add", str(run.path), "--benchmark", str(tmp_path / "perf.json"), "--store", str(store))
    first, again = epbench(*arguments), epbench(*arguments)
    assert first.stdout.splitlines() == [str(store / f"{SCENARIO}.jsonl"), str(store / f"{BENCHMARKS}.jsonl")]
    assert first.stderr.splitlines()[:2] == ["2 added, 0 were there"] * 2
    assert again.stderr.splitlines()[:2] == ["0 added, 2 were there"] * 2


def test_arms_of_two_ab_are_two_nights_though_both_are_called_head(tmp_path: Path) -> None:
    for night in range(2):
        run = night_run(tmp_path / "reports", night_view(night, night_cell(0.2))).path
        both = tmp_path / "reports" / f"ab-{night}"
        both.mkdir()
        (both / "arms.json").touch()
        run.rename(both / "head")
        store = str(tmp_path / "store")
        assert "1 added, 0 were there" in epbench("history", "add", str(both / "head"), "--store", store).stderr
    assert [night.run for night in only_series(tmp_path / "store").nights] == ["ab-0/head", "ab-1/head"]


def test_runs_that_were_copied_under_one_name_are_nights_of_their_own(tmp_path: Path) -> None:
    for night in (0, 1, 1):
        add_nights(tmp_path, SCENARIO, run_nights(night_view(night, night_cell(0.2)), "head"))
    assert [night.started for night in only_series(tmp_path).nights] == [started(0), started(1)]


def test_a_year_of_fifty_cells_is_read_in_seconds(tmp_path: Path) -> None:
    """No index is needed. Lines of 20 nights are repeated under other names, which is what a year looks like."""
    add(tmp_path, 0, night_cell(0.2, cell=EP_CELL))
    path = history_path(tmp_path, SCENARIO)
    *head, night = path.read_text().splitlines()
    cell = next(line for line in head if '"kind":"cell"' in line)
    key = json.loads(cell)["key"]
    cells = [cell.replace(key, f"k{at}").replace("dp4-ep4", f"dp4-ep{at}") for at in range(50)]
    nights = [night.replace(key, f"k{at}").replace("night-0", f"n{day}") for day in range(365) for at in range(50)]
    path.write_text("\n".join([*head, *cells, *nights]) + "\n")
    began = os.times().user
    found = series_of(read_history(path))
    assert os.times().user - began < 5
    assert [len(one.nights) for one in found] == [365] * 50


# ---------------------------------------------------------------- ways out


def test_pytorch_records_have_what_the_database_requires(tmp_path: Path) -> None:
    filled(tmp_path, [0.2], cell=EP_CELL)
    records = {record["metric"]["name"]: record for record in pytorch_records(read_store(tmp_path)[0])}
    work = records["device_work_s"]
    assert work["metric"]["benchmark_values"] == pytest.approx([0.2, 0.1988, 0.2012, 0.2006, 0.1994])
    assert (work["benchmark"]["name"], work["benchmark"]["mode"]) == (f"epbench {SCENARIO}", "training")
    assert (work["model"]["name"], work["model"]["backend"]) == ("dp4-ep4 eager", "eager")
    assert (work["timestamp"], work["schema_version"]) == (1788229800, "v3")  # 2026-09-01 02:30 UTC
    assert work["runners"][0] | {"extra_info": {}} == {
        "name": "host-a GPU-1a2b3c4d GPU-5e6f7a8b",
        "type": "NVIDIA H200",
        "gpu_info": "NVIDIA H200",
        "gpu_count": 4,
        "extra_info": {},
    }
    for record in records.values():
        assert all(isinstance(text, str) for text in record["benchmark"]["extra_info"].values())
        assert all(math.isfinite(value) for value in record["metric"]["benchmark_values"])
    assert "transfer_s:all_to_all/dispatch/forward/ep" in records


def test_csv_has_a_line_a_night_cell_and_metric_and_no_formula(tmp_path: Path) -> None:
    cell = night_cell(0.2).model_copy(update={"layout": "=1+1"})
    add_nights(tmp_path, SCENARIO, run_nights(night_view(0, cell), "@run"))
    rows = list(csv.DictReader(io.StringIO(history_csv(read_store(tmp_path)[0], ["step_s", "peak_allocated_bytes"]))))
    step, peak = rows
    assert (step["metric"], step["launches"]) == ("step_s", "5")
    assert float(step["value"]) == pytest.approx(0.22)
    assert float(step["low"]) < 0.22 < float(step["high"])
    assert (peak["metric"], peak["low"], peak["launches"]) == ("peak_allocated_bytes", "", "")
    assert (step["layout"], step["run"]) == ("'=1+1", "'@run")


def test_export_prints_or_writes_the_same(tmp_path: Path) -> None:
    filled(tmp_path, [0.2])
    arguments = ("history", "export", "--store", str(tmp_path), "--metric", "step_s")
    printed = epbench(*arguments, "--format", "pytorch")
    written = epbench(*arguments, "--format", "pytorch", "--output", str(tmp_path / "out.json"))
    assert (tmp_path / "out.json").read_text() == printed.stdout
    assert written.stdout == f"{tmp_path / 'out.json'}\n"
    assert [record["metric"]["name"] for record in json.loads(printed.stdout)] == ["step_s"]
    assert epbench(*arguments, "--format", "csv").stdout.count("\n") == 2
