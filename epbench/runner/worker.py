"""One rank of one launch: build, warm up, time, then the memory, routing and trace passes, each apart.

The passes are apart because each changes what the others measure: a profiler in the timed loop turned a
2.17x into a 1.87x (pytorch #181043). Everything that this rank learns goes to its ``rank-N.jsonl``; the
parent judges.

Forked by the elastic agent of its node; by hand, to look at one launch, under torchrun's command line::

    torchrun --nproc-per-node 8 -m epbench.runner.worker LAUNCH/spec.json
"""

import faulthandler
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from epbench.errors import ScenarioError, StorageError
from epbench.packing import NUM_BATCHES
from epbench.runner.processes import die_with_parent
from epbench.runner.ranklog import RankLog
from epbench.runner.spec import LaunchSpec
from epbench.runner.victims import EXIT_UNWRITABLE, is_secondary
from epbench.store import write_record
from epbench.writing import write_atomically, writing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from epbench.measure.routing import RoutingRecorder
    from epbench.stacks.protocol import Step, World

__all__ = ["main", "run_rank"]

_STAND_BACK_S = 2.0


def run_rank(spec_path: str, agent: int | None = None) -> None:
    """Do what the order says, as the rank that the environment names; raises what ended this rank.

    ``agent`` is the process that forked this one: the rank does not outlive it.
    """
    if agent is not None:
        die_with_parent(agent)
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # the agent's Python handlers, inherited, never run in a collective
        signal.signal(number, signal.SIG_DFL)
    spec = LaunchSpec.read(Path(spec_path))
    rank = int(os.environ["RANK"])
    try:
        _run_logged(spec, rank)
    except StorageError:  # perhaps of the rank's own log: the exit code is all that can still be said
        with suppress(OSError):
            traceback.print_exc()
        os._exit(EXIT_UNWRITABLE)


def _run_logged(spec: LaunchSpec, rank: int) -> None:
    log = RankLog(spec.rank_log(rank))
    path = spec.stack_dump(rank)
    with writing(path):
        stacks = path.open("w")
    with stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
        _record_flight_when_asked(spec.flight_record(rank))
        try:
            _run(spec, log)
        except BaseException as error:  # the launch boundary: the parent must learn what ended this rank
            log.failure(error)
            _stand_back(error)
            raise
        finally:
            faulthandler.unregister(signal.SIGUSR1)


def _record_flight_when_asked(path: Path) -> None:
    """On SIGUSR2, write which collectives this rank has issued; a thread, for a hung rank runs no handler."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    def record() -> None:
        signal.sigwait({signal.SIGUSR2})
        write_atomically(path, _flight().decode())

    threading.Thread(target=record, name="flight-recorder", daemon=True).start()


def _flight() -> bytes:
    """The flight recorder's JSON. NCCL keeps one of its own, which a torch without NCCL does not have."""
    c10d: Any = torch._C._distributed_c10d
    dump = c10d._dump_nccl_trace_json if dist.get_backend() == "nccl" else c10d._dump_fr_trace_json
    flight: bytes = dump()
    return flight


def _stand_back(error: BaseException) -> None:
    """A victim of another rank's end waits to be ended, so that the agent sees the cause first."""
    if is_secondary(type(error).__name__, str(error)):
        threading.Event().wait(_STAND_BACK_S)


def _run(spec: LaunchSpec, log: RankLog) -> None:
    log.phase("start", process_id=os.getpid(), host=socket.gethostname(), torch=torch.__version__)
    with _process_group(spec) as world:
        log.phase("ready")
        log.result("host", _host(world))
        if spec.kind == "verify":
            _verify(spec, world, log)
        elif spec.kind == "canary":
            _canary(world, log)
        elif spec.kind == "comm":
            _comm(spec, world, log)
        else:
            _measure(spec, world, log)
        log.phase("done")


@contextmanager
def _process_group(spec: LaunchSpec) -> "Iterator[World]":
    """The world, gone again afterwards unless the launch is failing (a broken group does not say goodbye).

    One collective is done when it is handed over: NCCL connects its ranks on the first one, which is start-up.
    """
    from epbench.stacks.protocol import World

    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world_size != spec.cell.world_size:
        raise ScenarioError(f"{spec.cell.id} needs {spec.cell.world_size} ranks; torchrun started {world_size}")
    device = torch.device(spec.device, local_rank) if spec.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=timedelta(seconds=spec.group_timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    dist.all_reduce(torch.zeros((), device=device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    yield World(rank, world_size, local_rank, device)
    dist.destroy_process_group()


def _host(world: "World") -> dict[str, Any]:
    """What differs between machines of one kind, kept per launch and out of the environment's digest."""
    host: dict[str, Any] = {"name": socket.gethostname()}
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        host["gpu_uuid"] = str(properties.uuid)
        host["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return host


def _verify(spec: LaunchSpec, world: "World", log: RankLog) -> None:
    from epbench.runner.verify import verify_cell

    def enter(stage: str) -> None:
        log.phase(f"verify_{stage}")

    scope, tolerance = spec.measure.verify, spec.measure.verify_tolerance
    log.result("verify", verify_cell(spec.cell, world, scope=scope, tolerance=tolerance, on_stage=enter))


def _canary(world: "World", log: RankLog) -> None:
    from epbench.measure.canary import time_canary

    log.phase("canary")
    log.result("canary", time_canary(world, on_progress=log.beat))


def _comm(spec: LaunchSpec, world: "World", log: RankLog) -> None:
    from epbench.measure.comm_sweep import sweep

    log.phase("comm")
    log.result("comm", sweep(spec.partitions, world, directory=spec.trace_directory, on_progress=log.beat))


def _measure(spec: LaunchSpec, world: "World", log: RankLog) -> None:
    from epbench.measure.clock import time_steps
    from epbench.stacks.data import batches
    from epbench.stacks.protocol import load_stack

    log.phase("build")
    step = load_stack(spec.cell.train.stack)(spec.cell, world)
    data = batches(spec.cell, NUM_BATCHES, world.device)
    recorder = _recorder(spec, step)
    log.phase("warmup")
    log.result("timing", time_steps(step, data, world, spec.measure, on_progress=log.beat))
    log.result("description", step.describe())
    if recorder is not None:
        recorder.write(spec.recorded_routing, world)
    if spec.detailed:
        _look_closer(spec, step, data, world=world, log=log)
    if spec.traced:
        _trace(spec, step, data, world=world, log=log)


def _recorder(spec: LaunchSpec, step: "Step") -> "RoutingRecorder | None":
    """What keeps the routing of the first warm-up step, if it was asked for; once a cell is enough."""
    from epbench.measure.routing import RoutingRecorder

    return RoutingRecorder(step, spec.cell) if spec.measure.record_routing and spec.detailed else None


def _look_closer(spec: LaunchSpec, step: "Step", data: Any, *, world: "World", log: RankLog) -> None:
    from epbench.measure.memory import memory_pass, timeline_of_worst_rank
    from epbench.measure.routing import expert_copies, expert_load

    log.phase("memory")
    found = memory_pass(step, data[0], world)
    log.result("memory", found.memory)
    timeline = timeline_of_worst_rank(found, world)
    if timeline is not None:
        write_record(spec.memory_timeline, timeline)
    log.phase("routing")
    log.result("expert_load", expert_load(step, spec.cell, world))
    copies = expert_copies(step, spec.cell, world)
    if copies is not None and world.rank == 0:
        write_atomically(spec.expert_copies, copies.model_dump_json())


def _trace(spec: LaunchSpec, step: "Step", data: Any, *, world: "World", log: RankLog) -> None:
    from epbench.measure.capture import trace_pass

    log.phase("trace")
    spec.trace_directory.mkdir(exist_ok=True)
    trace_pass(step, data, world, steps=spec.measure.trace_steps, directory=spec.trace_directory)


def main() -> None:
    """Entry of ``torchrun -m epbench.runner.worker SPEC.json``; saves two seconds of interpreter teardown."""
    run_rank(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
