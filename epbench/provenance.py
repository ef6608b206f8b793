"""What a result depends on besides its cell: the device, the software, the variables and epbench's own code.

The parent never imports torch (14 s on a GPU machine, and it must not own a device context): versions are
read from package metadata and torch's ``version.py``, devices through NVML. Two results may be compared only
when the digests are equal; host name, GPU UUID and time are kept per launch and are no part of it.
"""

import ast
import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from epbench.cells import digest
from epbench.errors import UnfitMachineError
from epbench.flops import nodes_suffix
from epbench.records import EnvironmentRecord
from epbench.stack_support import library_versions, stack_path

__all__ = [
    "Device",
    "Gpus",
    "choose_device",
    "code_digest",
    "describe_environment",
    "find_gpus",
    "nccl_version",
    "relevant_variables",
    "torch_cuda_version",
]

Device = Literal["cpu", "cuda"]

_VARIABLE_PREFIXES = ("NCCL_", "TORCH", "CUDA_", "PYTORCH_", "OMP_", "MKL_", "GLOO_", "TRITON_")
_UNRELATED_VARIABLES = {
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VERSION",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_VERSION",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
}
# Faces of a finished result, and of the machine: a change there cannot change a number.
_FACES = ("report", "doctor", "launch_files", "baselines", "history", "cli.py", "__main__.py", "frames.py")


@dataclass(frozen=True)
class Gpus:
    """The GPUs that this process may use, as NVML tells."""

    names: tuple[str, ...] = ()
    memory_bytes: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()
    driver: str | None = None

    def __len__(self) -> int:
        return len(self.names)


def find_gpus(variables: Mapping[str, str] = os.environ) -> Gpus:
    """GPUs visible under ``CUDA_VISIBLE_DEVICES``; none when there is no NVIDIA driver or no NVML binding.

    Raises UnfitMachineError when the driver cannot describe one, as when it has lost it.
    """
    try:
        import pynvml
    except ImportError:
        return Gpus()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Gpus()
    try:
        return _visible(_all_gpus(pynvml), variables.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError as error:
        raise UnfitMachineError(f"the driver cannot describe its GPUs ({error}): see nvidia-smi, reset them") from None
    finally:
        pynvml.nvmlShutdown()


def _all_gpus(nvml: Any) -> Gpus:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return Gpus(
        names=tuple(nvml.nvmlDeviceGetName(handle) for handle in handles),
        memory_bytes=tuple(int(nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles),
        uuids=tuple(nvml.nvmlDeviceGetUUID(handle) for handle in handles),
        driver=nvml.nvmlSystemGetDriverVersion(),
    )


def _visible(gpus: Gpus, visible: str | None) -> Gpus:
    """The GPUs that CUDA would enumerate: the list ends at the first entry that names none."""
    if visible is None:
        return gpus
    chosen: list[int] = []
    for entry in visible.split(","):
        index = _index_of(entry.strip(), gpus)
        if index is None:
            break
        chosen.append(index)
    return Gpus(
        names=tuple(gpus.names[i] for i in chosen),
        memory_bytes=tuple(gpus.memory_bytes[i] for i in chosen),
        uuids=tuple(gpus.uuids[i] for i in chosen),
        driver=gpus.driver,
    )


def _index_of(entry: str, gpus: Gpus) -> int | None:
    if entry.isascii() and entry.isdigit():
        return int(entry) if int(entry) < len(gpus) else None
    return next((i for i, uuid in enumerate(gpus.uuids) if entry and uuid.startswith(entry)), None)


def choose_device(wanted: str, world_size: int, *, gpus: Gpus | None = None) -> tuple[Device, str]:
    """The device to run on and why. ``auto`` is cuda where the machine has ``world_size`` GPUs, else cpu.

    Raises UnfitMachineError when cuda is asked for by name and cannot be had.
    """
    if wanted == "cpu":
        return "cpu", "asked for"
    found = find_gpus() if gpus is None else gpus
    lacking = _lacking(found, world_size)
    if lacking is None:
        return "cuda", f"{len(found)} x {found.names[0]} for {world_size} ranks"
    if wanted == "cuda":
        raise UnfitMachineError(f'device cuda was asked for, but {lacking}; use device = "cpu" or a smaller world')
    return "cpu", lacking


def _lacking(gpus: Gpus, world_size: int) -> str | None:
    if len(gpus) < world_size:
        return f"this machine has {len(gpus)} usable GPUs for {world_size} ranks"
    if torch_cuda_version() is None:
        return "the installed torch is built without CUDA"
    return None


def torch_cuda_version() -> str | None:
    """CUDA version of the installed torch, read without importing it; None for a CPU build."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    values = [_assigned(node, "cuda") for node in ast.parse(text).body]
    return next((value for value in values if isinstance(value, str)), None)


def _assigned(node: ast.stmt, name: str) -> object:
    """The constant that a statement assigns to ``name``, or None."""
    if isinstance(node, ast.AnnAssign):
        targets: list[ast.expr] = [node.target]
    elif isinstance(node, ast.Assign):
        targets = node.targets
    else:
        return None
    named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
    return node.value.value if named and isinstance(node.value, ast.Constant) else None


def nccl_version() -> str | None:
    """Version of the NCCL library installed beside torch, or None."""
    for package in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def relevant_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables that change how fast, or what, torch, NCCL and OpenMP compute; places of caches are not."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(_VARIABLE_PREFIXES) and name not in _UNRELATED_VARIABLES
    }


def code_digest(stacks: Iterable[str] = ()) -> str:
    """Digest of what takes part in a measurement: epbench's sources, a foreign stack's, and a stack's library."""
    root = Path(__file__).parent
    sources = [path for path in sorted(root.rglob("*.py")) if not _is_face(path.relative_to(root).parts[0])]
    state = hashlib.sha256()
    for path in sources + [path for stack in sorted(set(stacks)) for path in _stack_sources(stack)]:
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for library in library_versions(stacks):
        state.update(library.encode() + b"\0")
    return state.hexdigest()


def _is_face(name: str) -> bool:
    return name in _FACES or name.startswith("cli_")


def _stack_sources(stack: str) -> list[Path]:
    """Sources of a stack at ``pkg.module:build``: all of its top-level package, or its one file; none if it is ours."""
    package = stack_path(stack).partition(":")[0].partition(".")[0]
    if not package.isidentifier() or package in (__package__, "__main__"):
        return []
    spec = util.find_spec(package)
    if spec is None or spec.origin is None or not spec.has_location:  # a namespace, or part of the interpreter
        return []
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def describe_environment(
    device: Device,
    *,
    world_size: int,
    nodes: int = 1,
    stacks: tuple[str, ...] = (),
    variables: Mapping[str, str] = os.environ,
    gpus: Gpus | None = None,
) -> EnvironmentRecord:
    """The environment of a run on ``device`` of ``nodes`` machines like this one, with its digest.

    The name of a device on several nodes says so: no baseline, history or gate takes it for one without a network.
    """
    found = (find_gpus() if gpus is None else gpus) if device == "cuda" else Gpus()
    compared: dict[str, Any] = {
        "device": device,
        "device_name": (found.names[0] if device == "cuda" else _cpu_name()) + nodes_suffix(nodes),
        "device_memory_bytes": min(found.memory_bytes) if device == "cuda" else None,
        "world_size": world_size,
        "driver": found.driver,
        "torch": metadata.version("torch"),
        "cuda": torch_cuda_version() if device == "cuda" else None,
        "nccl": nccl_version() if device == "cuda" else None,
        "python": platform.python_version(),
        "variables": relevant_variables(variables),
        "code": code_digest(stacks),
    } | ({"nodes": nodes} if nodes > 1 else {})  # of one node, the digest of runs before there were several
    return EnvironmentRecord(**compared, digest=digest(compared))


def _cpu_name() -> str:
    """Model of the processor and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model()}, {cores} cores"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
