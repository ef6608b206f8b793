"""Traces as large as those of a real step on many GPUs, made quickly: one step's text, repeated with other times.

The proportions are those of a trace of torch 2.11 on NCCL: per kernel one launch, a flow arrow from one to the
other, and some operators of the host; a collective in every twelve kernels. Each event is written out with all the
arguments that the profiler gives it, for it is these that make a trace large.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epbench.labels import CommLabel

PROCESS, MAIN, AUTOGRAD, STREAM, COMM_STREAM = 4242, 4242, 4301, 7, 20
KERNELS = (
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopA_TNN",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, "
    "3ul> >(int, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul>)",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass::bfloat16_t, "
    "Flash_kernel_traits<128, 128, 64, 4, cutlass::bfloat16_t> >, false, true, false, false, false, true, false, "
    "false>(pytorch_flash::Flash_fwd_params)",
    "triton_per_fused__to_copy_add_mean_mul_pow_rsqrt_4",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
    "FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4, "
    "(at::native::ADAM_MODE)1, false>, double, double, double, double, double>(...)",
)
OPERATORS = ("aten::linear", "aten::t", "aten::mm", "autograd::engine::evaluate_function: MmBackward0")


def write_big_traces(directory: Path, *, ranks: int, megabytes: int, steps: int = 3) -> None:
    """``rank-<n>.json.gz`` of about ``megabytes`` (10^6 bytes) of JSON each."""
    per_block = len(json.dumps(_block(0, 0, 0.0)))
    blocks = megabytes * 1_000_000 // per_block // steps
    for rank in range(ranks):
        with gzip.open(directory / f"rank-{rank}.json.gz", "wt", compresslevel=1) as file:
            file.write(f'{{"schemaVersion": 1, "distributedInfo": {json.dumps(_world(rank, ranks))}, "traceEvents": [')
            for step in range(steps):
                for block in range(blocks):
                    number = step * blocks + block
                    file.write(json.dumps(_block(rank, number, number * 300.0))[1:-1] + ",\n")
                file.write(json.dumps(_step(step, blocks * 300.0)) + (",\n" if step < steps - 1 else "\n"))
            file.write('], "host_name": "h", "baseTimeNanoseconds": 1790857026000000000}')


def _world(rank: int, ranks: int) -> dict[str, Any]:
    return {"backend": "nccl", "rank": rank, "world_size": ranks, "pg_config": []}


def _step(step: int, length: float) -> dict[str, Any]:
    return _event("user_annotation", f"epbench:step#{step}", step * length, length - 1, tid=MAIN)


def _event(
    category: str, name: str, ts: float, dur: float, *, tid: int, pid: int = PROCESS, **args: Any
) -> dict[str, Any]:
    times = {"ts": round(ts + 4.5e12, 3), "dur": round(dur, 3)}
    return {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid} | times | {"args": args}


def _block(rank: int, number: int, at: float) -> list[dict[str, Any]]:
    """300 microseconds: twelve kernels with all that belongs to them, the last of them an all-to-all."""
    events: list[dict[str, Any]] = []
    for index in range(11):
        events += _kernel(number * 12 + index, at + 25 * index, KERNELS[index % len(KERNELS)])
    label = CommLabel("all_to_all", "dispatch", "forward", "ep", 0, 8, 1 << 20, 1 << 20)
    events.append(_event("user_annotation", label.text, at + 275, 20, tid=MAIN, **{"External id": number}))
    late = 3.0 * ((rank + number) % 8)
    return [*events, *_kernel(number * 12 + 11, at + 276, "ncclDevKernel_SendRecv", late=late, **_NCCL)]


_NCCL = {
    "Collective name": "all_to_allv",
    "In msg nelems": 524288,
    "Out msg nelems": 524288,
    "Group size": 8,
    "dtype": "BFloat16",
    "In split size": "[65536, 65536, 65536, 65536, 65536, 65536, 65536, 65536]",
    "Process Group Name": "12",
    "Process Group Description": "mesh_ep",
    "Process Group Ranks": "[0, 1, 2, 3, 4, 5, 6, 7]",
}


def _kernel(number: int, at: float, name: str, *, late: float = 0.0, **more: Any) -> Iterator[dict[str, Any]]:
    """The operators around a launch, the launch, the arrow and the kernel."""
    ids = {"External id": number, "correlation": number}
    stream = COMM_STREAM if more else STREAM
    for depth, operator in enumerate(OPERATORS):
        shown = {"External id": number, "Record function id": 0, "Sequence number": number, "Fwd thread id": 0}
        yield _event("cpu_op", operator, at + depth, 22 - 2 * depth, tid=MAIN, **shown, **{"Ev Idx": number})
    yield _event("cuda_runtime", "cudaLaunchKernelExC", at + 5, 4, tid=MAIN, **ids, cbid=430)
    arrow = {"cat": "ac2g", "id": number, "name": "ac2g"}
    yield {"ph": "s", "pid": PROCESS, "tid": MAIN, "ts": at + 5 + 4.5e12} | arrow
    yield _event(
        "kernel",
        name,
        at + 500 + late,
        23 - late,
        pid=0,
        tid=stream,
        **ids,
        **more,
        **{"device": 0, "context": 1, "stream": stream, "queued": 0, "grid": [8, 132, 1], "block": [384, 1, 1]},
        **{"registers per thread": 168, "shared memory": 213016, "blocks per SM": 0.5, "warps per SM": 6.0},
        **{"est. achieved occupancy %": 9},
    )
    yield {"ph": "f", "pid": 0, "tid": stream, "ts": at + 500 + 4.5e12, "bp": "e"} | arrow
