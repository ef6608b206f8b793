"""The device is chosen with a reason, and the digest follows what changes a number and nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from epbench import provenance
from epbench.errors import UnfitMachineError
from epbench.provenance import Gpus, choose_device, code_digest, describe_environment, find_gpus

TWO = Gpus(names=("H200", "H200"), memory_bytes=(141, 140), uuids=("GPU-aa", "GPU-bb"), driver="580.1")


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "torch_cuda_version", lambda: "13.0")


@pytest.mark.usefixtures("cuda_build")
@pytest.mark.parametrize(
    ("wanted", "world_size", "device", "reason"),
    [
        ("auto", 2, "cuda", "2 x H200 for 2 ranks"),
        ("cuda", 1, "cuda", "2 x H200 for 1 ranks"),
        ("auto", 4, "cpu", "this machine has 2 usable GPUs for 4 ranks"),
        ("cpu", 2, "cpu", "asked for"),
    ],
)
def test_the_device_and_its_reason(wanted: str, world_size: int, device: str, reason: str) -> None:
    assert choose_device(wanted, world_size, gpus=TWO) == (device, reason)


@pytest.mark.usefixtures("cuda_build")
def test_cuda_asked_for_and_missing() -> None:
    with pytest.raises(UnfitMachineError, match="2 usable GPUs for 4 ranks") as raised:
        choose_device("cuda", 4, gpus=TWO)
    assert raised.value.exit_code == 6


def test_gpus_without_a_cuda_build_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "torch_cuda_version", lambda: None)
    assert choose_device("auto", 2, gpus=TWO) == ("cpu", "the installed torch is built without CUDA")


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ("GPU-aa", "GPU-bb")),
        ("1", ("GPU-bb",)),
        ("1,0", ("GPU-bb", "GPU-aa")),
        ("0,7,1", ("GPU-aa",)),
        ("GPU-b", ("GPU-bb",)),
        ("", ()),
        ("-1", ()),
    ],
)
def test_visible_devices_as_cuda_reads_them(visible: str | None, uuids: tuple[str, ...]) -> None:
    assert provenance._visible(TWO, visible).uuids == uuids


def environment(**changes: Any) -> str:
    known: dict[str, Any] = {"world_size": 2, "variables": {}, "gpus": TWO}
    return describe_environment("cuda", **(known | changes)).digest


def test_the_digest_follows_what_changes_a_number() -> None:
    base = environment()
    assert environment(world_size=4) != base
    assert environment(variables={"NCCL_ALGO": "Ring"}) != base
    assert environment(gpus=Gpus(("H100",) * 2, (141, 140), ("a", "b"), "580.1")) != base
    assert environment(gpus=Gpus(TWO.names, TWO.memory_bytes, TWO.uuids, "581.0")) != base


def test_the_digest_ignores_what_does_not() -> None:
    base = environment()
    other_machine = Gpus(TWO.names, TWO.memory_bytes, ("GPU-cc", "GPU-dd"), "580.1")
    assert environment(gpus=other_machine) == base
    irrelevant = {"HOME": "/x", "HOSTNAME": "y", "TORCHINDUCTOR_CACHE_DIR": "/z", "CUDA_VISIBLE_DEVICES": "1"}
    assert environment(variables=irrelevant) == base


def test_a_foreign_stack_is_part_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "foreign_stack_of_a_test.py"
    module.write_text("x = 1\n")
    first = code_digest(("foreign_stack_of_a_test:build",))
    module.write_text("x = 2\n")
    assert code_digest(("foreign_stack_of_a_test:build",)) != first
    assert code_digest(("qwen3_moe",)) == code_digest()


@pytest.mark.parametrize("name", ["sys", "os.path", "__main__", "none_such"])
def test_a_stack_without_sources_has_none_in_the_digest(name: str) -> None:
    assert code_digest((f"{name}:build",)) == code_digest()


def test_a_cpu_environment_leaves_gpu_fields_null() -> None:
    record = describe_environment("cpu", world_size=4, variables={})
    assert (record.driver, record.cuda, record.nccl, record.device_memory_bytes) == (None, None, None, None)
    assert "cores" in record.device_name


def test_torch_is_not_imported() -> None:
    program = (
        "import sys; from epbench.provenance import describe_environment as d; import epbench.store; "
        "d('cpu', world_size=2); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_gpus_of_this_machine_can_be_asked_for() -> None:
    found = find_gpus({})
    assert len(found.names) == len(found.uuids) == len(found.memory_bytes)
