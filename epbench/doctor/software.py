"""Checks of versions that must fit each other, and of variables that change results without a trace in a scenario."""

from collections.abc import Mapping

from epbench.doctor.machine import Machine, Software
from epbench.provenance import relevant_variables
from epbench.records import MachineCheck

__all__ = ["software_checks"]

# Names and prefixes (with *) whose mere presence changes what is measured, and how.
_CHANGES: Mapping[str, str] = {
    "NCCL_ALGO": "fixes the algorithm that NCCL would choose by size",
    "NCCL_PROTO": "fixes the protocol that NCCL would choose by size",
    "NCCL_P2P_DISABLE": "sends traffic between GPUs through host memory",
    "NCCL_P2P_LEVEL": "limits which GPUs talk directly",
    "NCCL_SHM_DISABLE": "sends traffic between GPUs over the network",
    "NCCL_IB_DISABLE": "takes TCP instead of InfiniBand",
    "NCCL_NVLS_ENABLE": "changes how NCCL reduces over NVSwitch",
    "NCCL_CUMEM_ENABLE": "changes how NCCL maps the memory of peers",
    "NCCL_MIN_NCHANNELS": "changes how many SMs NCCL takes from computing",
    "NCCL_MAX_NCHANNELS": "changes how many SMs NCCL takes from computing",
    "NCCL_MIN_CTAS": "changes how many SMs NCCL takes from computing",
    "NCCL_MAX_CTAS": "changes how many SMs NCCL takes from computing",
    "NCCL_NTHREADS": "changes the size of NCCL's kernels",
    "NCCL_BUFFSIZE": "changes how NCCL cuts messages",
    "NCCL_DEBUG": "logs, which slows each launch's start",
    "TORCH_NCCL_BLOCKING_WAIT": "makes the host wait for each collective",
    "TORCH_NCCL_USE_COMM_NONBLOCKING": "changes when communicators are made",
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "changes when memory is freed",
    "TORCH_DISTRIBUTED_DEBUG": "checks each collective on all ranks before it runs",
    "CUDA_LAUNCH_BLOCKING": "makes the host wait for each kernel",
    "CUDA_DEVICE_MAX_CONNECTIONS": "changes which kernels can overlap",
    "CUDA_MODULE_LOADING": "changes when kernels are loaded",
    "NVIDIA_TF32_OVERRIDE": "changes the precision of fp32 products",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "changes the precision of fp32 products",
    "CUBLAS_WORKSPACE_CONFIG": "limits which GEMM kernels are chosen",
    "PYTORCH_CUDA_ALLOC_CONF": "changes the allocator and thereby peak memory",
    "PYTORCH_ALLOC_CONF": "changes the allocator and thereby peak memory",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "asks the driver for each allocation",
    "TORCH_COMPILE_DISABLE": "makes compiled cells eager",
    "TORCHDYNAMO_DISABLE": "makes compiled cells eager",
    "TORCH_LOGS": "logs, which slows compilation",
    "TORCHINDUCTOR_MAX_AUTOTUNE": "changes the kernels of compiled cells",
    "OMP_NUM_THREADS": "sets the threads of each rank on CPU (epbench's own choice is 1)",
}


def software_checks(machine: Machine) -> list[MachineCheck]:
    """Versions, where they were looked at, then variables."""
    versions = [] if machine.software is None else [_torch(machine.software), _driver(machine, machine.software)]
    return [*versions, _variables(machine), _visible(machine)]


def _torch(software: Software) -> MachineCheck:
    cuda = f"for CUDA {software.cuda}" if software.cuda else "for CPU"
    found = f"{software.torch} {cuda}, NCCL {software.nccl or 'none'}" if software.torch else "none"
    if software.trouble is None:
        return MachineCheck(name="torch", status="ok", found=found)
    slow = software.trouble.startswith("not imported within")
    fix = "run doctor again, now that its files are cached" if slow else "make install"
    found = f"{found}; {software.trouble}"
    return MachineCheck(name="torch", status="unknown" if slow else "fail", found=found, fix=fix)


def _driver(machine: Machine, software: Software) -> MachineCheck:
    if machine.driver is None:
        return MachineCheck(name="driver", status="ok", found="no NVIDIA driver, and none is needed for CPU")
    can = machine.cuda_driver
    found = f"{machine.driver}, for CUDA up to {_cuda(can)}"
    if software.torch is not None and software.cuda is None:
        fix = "install the CUDA build of torch, or every scenario runs on CPU"
        return MachineCheck(name="driver", status="warn", found=f"{found}; torch is built without CUDA", fix=fix)
    if can is None or software.cuda is None:
        return MachineCheck(name="driver", status="unknown", found=found)
    return _fits(found, can, software)


def _fits(found: str, can: int, software: Software) -> MachineCheck:
    """CUDA's rule: a driver runs every minor version of its major one, with newer features missing."""
    major, minor = (int(part) for part in str(software.cuda).split(".")[:2])
    if major > can // 1000:
        fix = f"install a driver for CUDA {major}, or a build of torch for CUDA {can // 1000}"
        return MachineCheck(name="driver", status="fail", found=f"{found}; torch needs {software.cuda}", fix=fix)
    if software.sees_gpus is False:
        fix = 'python -c "import torch; torch.cuda.init()" says why'
        return MachineCheck(name="driver", status="fail", found=f"{found}; torch sees no GPU", fix=fix)
    if (major, minor) > (can // 1000, can % 1000 // 10):
        return MachineCheck(
            name="driver", status="warn", found=f"{found}; torch is built for {software.cuda}", fix="update the driver"
        )
    return MachineCheck(name="driver", status="ok", found=found)


def _cuda(version: int | None) -> str:
    return "an unknown version" if version is None else f"{version // 1000}.{version % 1000 // 10}"


def _variables(machine: Machine) -> MachineCheck:
    if machine.variables.get("TORCH_LOGS") == "":
        found = "TORCH_LOGS is set to nothing, with which torch 2.13 cannot be imported"
        return MachineCheck(name="variables", status="fail", found=found, fix="unset TORCH_LOGS")
    told = {name: why for name, why in _CHANGES.items() if name in machine.variables}
    if told:
        found = "; ".join(f"{name} {why}" for name, why in told.items())
        fix = f"unset {' '.join(told)}, unless production sets them too"
        return MachineCheck(name="variables", status="warn", found=found, fix=fix)
    others = [name for name in relevant_variables(machine.variables) if name not in _CHANGES]
    found = f"none known to change results; part of each result: {', '.join(others)}" if others else "none set"
    return MachineCheck(name="variables", status="ok", found=found)


def _visible(machine: Machine) -> MachineCheck:
    value = machine.variables.get("CUDA_VISIBLE_DEVICES")
    order = machine.variables.get("CUDA_DEVICE_ORDER")
    found = "all GPUs" if value is None else f"CUDA_VISIBLE_DEVICES is '{value[:80]}': {len(machine.gpus)} GPUs"
    if len({gpu.name for gpu in machine.gpus}) > 1 and order != "PCI_BUS_ID":
        fix = "export CUDA_DEVICE_ORDER=PCI_BUS_ID: CUDA numbers unlike GPUs by speed, the driver by slot"
        return MachineCheck(name="visible", status="warn", found=f"{found}, of several models", fix=fix)
    return MachineCheck(name="visible", status="ok", found=found)
