"""Each check on machines that are well, doubtful and unfit; and what the command prints and exits with."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from epbench import doctor
from epbench.cli import app
from epbench.doctor import check_before_run, examine, exit_code, machine, render_checks, wanted_of
from epbench.doctor.machine import Gpu, Host, Machine, Pair, Process, Software, Wanted, read_machine
from epbench.errors import UnfitMachineError
from epbench.nvml import GpuLostError
from epbench.provenance import Gpus
from epbench.records import MachineCheck

GIB = 2**30
QUICK = str(Path(__file__).parent.parent / "scenarios" / "quick.toml")
HOST = Host(
    system="linux",
    cores=16,
    load=0.5,
    cpu_quota=None,
    governor="performance",
    clock_source="tsc",
    memory_available_bytes=64 * GIB,
    shm_bytes=8 * GIB,
    open_files=65536,
    compiler="/usr/bin/g++",
    disk_bytes={"reports": 100 * GIB},
)
GPU = Gpu(
    uuid="GPU-aa",
    name="H200",
    memory_bytes=141 * GIB,
    utilization=0,
    memory_used=GIB // 2,
    processes=(),
    mig=False,
    exclusive=False,
    ecc_errors=0,
    persistence=True,
    application_clock=1980,
    highest_clock=1980,
    reasons=0x1,
    temperature=36,
    nvlinks=18,
)
WELL = Machine(
    host=HOST,
    gpus=(GPU, replace(GPU, uuid="GPU-bb")),
    pairs=(Pair(0, 1, p2p=True, nvlink=True),),
    driver="580.95",
    cuda_driver=13000,
    has_driver_files=True,
    software=Software("2.11.0+cu130", "13.0", "2.28.9", sees_gpus=True),
)
CPU_ONLY = Machine(host=HOST, software=Software("2.13.0+cpu", None, None, sees_gpus=False))


def gpu(**changes: Any) -> Machine:
    """The well machine, whose GPU 1 differs."""
    return replace(WELL, gpus=(GPU, replace(WELL.gpus[1], **changes)))


def host(**changes: Any) -> Machine:
    return replace(WELL, host=replace(HOST, **changes))


def torch(**changes: Any) -> Machine:
    assert WELL.software is not None
    return replace(WELL, software=replace(WELL.software, **changes))


def variables(**values: str) -> Machine:
    return replace(WELL, variables=values)


def named(checks: list[MachineCheck], name: str) -> MachineCheck:
    (found,) = [check for check in checks if check.name == name]
    return found


@pytest.mark.parametrize("well", [WELL, CPU_ONLY], ids=["gpus", "cpu"])
def test_a_machine_that_is_well_has_nothing_to_mend(well: Machine) -> None:
    checks = examine(well)
    assert {check.status for check in checks} == {"ok"}, [check for check in checks if check.status != "ok"]
    assert all(check.fix == "" for check in checks)
    assert exit_code(checks, strict=True) == 0


@pytest.mark.parametrize(
    ("unwell", "name", "status", "found"),
    [
        (gpu(name="H100"), "gpus", "warn", "1 x H200 141 GiB, 1 x H100 141 GiB"),
        (gpu(lost=True), "gpus", "fail", "the driver has lost GPU 1"),
        (replace(CPU_ONLY, trouble="the driver cannot describe its GPUs"), "gpus", "fail", "cannot describe"),
        (replace(CPU_ONLY, has_driver_files=True), "gpus", "warn", "shows no GPU"),
        (replace(CPU_ONLY, has_driver_files=True, variables={"CUDA_VISIBLE_DEVICES": ""}), "gpus", "ok", "is ''"),
        (gpu(utilization=90), "idle", "warn", "GPU 1 at 90 %, 0.5 GiB used"),
        (gpu(memory_used=20 * GIB), "idle", "warn", "GPU 1 at 0 %, 20.0 GiB used"),
        (gpu(processes=(Process(7, "python", 2**30),)), "processes", "warn", "GPU 1: process 7 (python, 1024 MiB)"),
        (gpu(processes=(Process(7, None, None),)), "processes", "warn", "process 7 (outside this container)"),
        (gpu(processes=None), "processes", "unknown", "does not tell"),
        (gpu(mig=True), "mig", "fail", "Multi-Instance GPU is on on GPU 1"),
        (gpu(mig=None), "mig", "unknown", "does not tell"),
        (gpu(exclusive=True), "compute mode", "warn", "GPU 1"),
        (gpu(ecc_errors=3), "ecc", "fail", "uncorrected memory errors"),
        (gpu(ecc_errors=None), "ecc", "unknown", "does not tell"),
        (gpu(persistence=False), "persistence", "warn", "GPU 1"),
        (gpu(reasons=0x2, application_clock=1200), "clocks", "warn", "held at 1200 MHz of at most 1980 MHz"),
        (gpu(reasons=0x8 | 0x40, temperature=91), "throttling", "warn", "HW slowdown, HW thermal slowdown at 91 C"),
        (gpu(reasons=0x4), "throttling", "ok", "no GPU is slowed down"),
        (gpu(reasons=None), "throttling", "unknown", "does not tell"),
        (replace(WELL, pairs=(Pair(0, 1, p2p=False, nvlink=False),)), "topology", "warn", "between 0-1"),
        (replace(WELL, pairs=(Pair(0, 1, p2p=None, nvlink=None),)), "topology", "unknown", "does not tell"),
        (torch(trouble="cannot be imported: OSError"), "torch", "fail", "OSError"),
        (torch(trouble="not imported within 4 s"), "torch", "unknown", "not imported within 4 s"),
        (replace(WELL, software=Software(None, None, None, trouble="not installed")), "torch", "fail", "not installed"),
        (torch(cuda=None), "driver", "warn", "torch is built without CUDA"),
        (replace(WELL, cuda_driver=12080), "driver", "fail", "for CUDA up to 12.8; torch needs 13.0"),
        (torch(cuda="13.2"), "driver", "warn", "torch is built for 13.2"),
        (torch(sees_gpus=False), "driver", "fail", "torch sees no GPU"),
        (replace(WELL, cuda_driver=None), "driver", "unknown", "an unknown version"),
        (variables(NCCL_P2P_DISABLE="1"), "variables", "warn", "NCCL_P2P_DISABLE sends traffic between GPUs through"),
        (variables(TORCH_LOGS=""), "variables", "fail", "cannot be imported"),
        (variables(NCCL_SOCKET_IFNAME="eth0"), "variables", "ok", "part of each result: NCCL_SOCKET_IFNAME"),
        (variables(CUDA_VISIBLE_DEVICES="0,1"), "visible", "ok", "'0,1': 2 GPUs"),
        (gpu(name="H100"), "visible", "warn", "of several models"),
        (host(system="darwin"), "system", "fail", "darwin"),
        (host(load=12.0), "cpu", "warn", "16 cores, load 12.0"),
        (host(load=None), "cpu", "unknown", "16 cores"),
        (host(cpu_quota=2.5), "cpu quota", "warn", "2.5 of 16 cores"),
        (host(cpu_quota=32.0), "cpu quota", "ok", "32 of 16 cores"),
        (host(governor="powersave"), "cpu governor", "warn", "powersave"),
        (host(governor=None), "cpu governor", "unknown", "does not tell"),
        (host(clock_source="hpet"), "clock source", "warn", "hpet"),
        (host(memory_available_bytes=GIB), "memory", "warn", "1.0 GiB"),
        (host(shm_bytes=64 * 2**20), "/dev/shm", "warn", "0.06 GiB"),
        (host(shm_bytes=None), "/dev/shm", "warn", "not there"),
        (host(disk_bytes={"reports": 2 * GIB}), "disk", "warn", "2.0 GiB free for reports"),
        (host(disk_bytes={"reports": 2**20, "cache": 9 * GIB}), "disk", "fail", "0.0 GiB free for reports"),
        (host(open_files=256), "open files", "warn", "256"),
        (host(open_files=-1), "open files", "ok", "no limit"),
        (host(compiler=None), "c++ compiler", "warn", "none found"),
        (replace(WELL, wanted=Wanted("quick", 11, 4, None, "2 GPUs for 4 ranks")), "scenario", "fail", "2 GPUs for 4"),
        (replace(WELL, wanted=Wanted("quick", 11, 2, "cuda", "asked")), "scenario", "ok", "would run on cuda"),
        (replace(CPU_ONLY, wanted=Wanted("big", 3, 32, "cpu", "no GPU")), "cpu", "warn", "for 32 ranks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_found_and_has_a_fix(unwell: Machine, name: str, status: str, found: str) -> None:
    check = named(examine(unwell), name)
    assert check.status == status
    assert found in check.found
    assert "\n" not in check.found + check.fix
    assert bool(check.fix) or status in {"ok", "unknown"}


def test_exit_codes_of_the_worst_check() -> None:
    def of(*statuses: str) -> list[MachineCheck]:
        return [MachineCheck.model_validate({"name": "x", "status": status, "found": ""}) for status in statuses]

    assert exit_code(of("ok", "unknown"), strict=True) == 0
    assert exit_code(of("ok", "warn"), strict=False) == 0
    assert exit_code(of("ok", "warn"), strict=True) == 6
    assert exit_code(of("ok", "fail"), strict=False) == 6


def test_the_table_shows_every_check_with_its_fix() -> None:
    checks = examine(replace(gpu(mig=True), variables={"NCCL_ALGO": "Ring", "NCCL_PROTO": "LL"}))
    text = render_checks(checks)
    assert all(f"{check.status:<7}  {check.name}" in text for check in checks)
    assert "-> NCCL does not span MIG instances" in text
    assert max(map(len, text.splitlines())) <= 110
    assert text.splitlines()[-1] == f"This machine is not fit to measure: 1 fail, 1 warn, {len(checks) - 2} ok."


# ---- reading a machine ----

ANSWERS: Mapping[str, Any] = {"cuda_driver": 13000, "utilization": 3, "processes": [(1, 2**20), (2**30, None)]}


class ScriptedNvml:
    """Answers some questions about GPU-aa; GPU-bb is lost."""

    def ask(self, what: str, *gpus: str) -> Any:
        if "GPU-bb" in gpus:
            raise GpuLostError("GPU is lost")
        return ANSWERS.get(what)


def read(directory: Path) -> Machine:
    return read_machine([directory / "not" / "there"], with_software=False, variables={})


def test_a_machine_with_a_lost_gpu_and_an_unwilling_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two = Gpus(names=("H200", "H200"), memory_bytes=(GIB, GIB), uuids=("GPU-aa", "GPU-bb"), driver="580.1")
    monkeypatch.setattr(machine, "find_gpus", lambda _: two)
    monkeypatch.setattr(machine, "open_nvml", lambda: nullcontext(ScriptedNvml()))
    found = read(tmp_path)
    first, second = found.gpus
    assert (first.utilization, first.mig, first.ecc_errors, first.lost) == (3, None, None, False)
    assert first.processes is not None
    assert [process.memory_bytes for process in first.processes] == [2**20, None]
    assert first.processes[0].name is not None, "process 1 is always there"
    assert first.processes[1].name is None
    assert second.lost
    assert found.pairs == (Pair(0, 1, p2p=None, nvlink=None),)
    assert (found.driver, found.cuda_driver, found.software) == ("580.1", 13000, None)


def test_gpus_that_cannot_be_listed_are_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: Any) -> Gpus:
        raise UnfitMachineError("GPU is lost")

    monkeypatch.setattr(machine, "find_gpus", fail)
    assert read(tmp_path).trouble == "GPU is lost"


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    found = read(tmp_path).host
    assert found.system == "linux"
    assert found.cores >= 1
    assert found.memory_available_bytes
    assert next(iter(found.disk_bytes.values())) > 0


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "50000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group(tmp_path: Path, files: Mapping[str, str], quota: float | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert machine._cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("program", "trouble"),
    [
        ('print(\'a warning of torch\'); print(\'{"torch": "9", "cuda": null, "nccl": null}\')', None),
        ("raise OSError('libcudart is missing')", "cannot be imported: OSError: libcudart is missing"),
        ("import os; os._exit(3)", "import ended with 3"),
        ("import threading; threading.Event().wait()", "not imported within 1 s"),
    ],
)
def test_a_broken_torch_does_not_break_the_doctor(
    monkeypatch: pytest.MonkeyPatch, program: str, trouble: str | None
) -> None:
    monkeypatch.setattr(machine, "_PROBE", program)
    monkeypatch.setattr(machine, "_PROBE_TIMEOUT_S", 1.0 if "not imported" in str(trouble) else 60.0)
    found = machine._software(machine._start_probe({}))
    assert found.trouble == trouble
    assert found.torch is not None


# ---- before a run, and the command ----


def answering(patch: pytest.MonkeyPatch, found: Machine) -> None:
    patch.setattr(doctor, "read_machine", lambda *_, **__: found)


def test_a_run_is_refused_only_where_nothing_can_be_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answering(monkeypatch, gpu(processes=(Process(7, "python", None),)))
    assert named(check_before_run(tmp_path), "processes").status == "warn"
    answering(monkeypatch, gpu(mig=True, ecc_errors=1))
    with pytest.raises(UnfitMachineError, match=r"mig: .* use whole GPUs .*; ecc: .*; see epbench doctor"):
        check_before_run(tmp_path)


def test_a_scenario_that_cannot_run_says_why() -> None:
    assert wanted_of("x", 1, world_size=2, device="cpu") == Wanted("x", 1, 2, "cpu", "asked for")
    missing = wanted_of("x", 1, world_size=4096, device="cuda")
    assert missing.device is None
    assert "4096 ranks" in missing.reason


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="epbench")


@pytest.mark.parametrize(
    ("found", "arguments", "code"),
    [
        (WELL, [], 0),
        (WELL, ["--strict"], 0),
        (gpu(persistence=False), [], 0),
        (gpu(persistence=False), ["--strict"], 6),
        (gpu(mig=True), [], 6),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(
    monkeypatch: pytest.MonkeyPatch, found: Machine, arguments: list[str], code: int, as_json: bool
) -> None:
    answering(monkeypatch, found)
    result = command(*arguments, *(["--json"] if as_json else []))
    assert result.exit_code == code
    if as_json:
        document = json.loads(result.stdout)
        assert document["fit"] is (code == 0)
        assert [MachineCheck.model_validate(check) for check in document["checks"]] == examine(found)
        assert result.stderr == ""
    else:
        assert result.stdout == render_checks(examine(found)) + "\n"
        assert result.stderr == "next: epbench run scenarios/quick.toml\n"


def test_the_command_with_a_scenario_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Machine] = read_machine
    monkeypatch.setattr(doctor, "read_machine", lambda *a, **k: real(*a, **k, with_software=False))
    result = command(QUICK, "--device", "cpu", "--json")
    scenario = json.loads(result.stdout)["checks"][0]
    assert scenario["found"] == "quick: 11 cells on up to 4 ranks would run on cpu (asked for)"
    assert command("no-such-file.toml").exit_code == 2
