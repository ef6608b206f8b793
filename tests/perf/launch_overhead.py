"""What a launch costs before and after its work, against a bare torchrun of as many ranks on the same machine.

Ours: from the parent's order to the first collective that every rank has done, plus from the end of the last pass to
when no process is left; the launch is the canary's, by the real fork server, agent and worker. The bare torchrun
imports torch and fsdp, makes the process group, does one collective and ends; all of its time counts, from the
command to its end. The two alternate. Starting the fork server is no part of it, for that happens once a run; it is
printed beside. ::

    python -m tests.perf.launch_overhead --ranks 4 --rounds 5
    python -m tests.perf.launch_overhead --ranks 2 --rounds 5 --device cuda
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epbench.analysis.statistics import Interval, ratio_interval
from epbench.cells import Cell, MeasureSpec
from epbench.layout import Layout
from epbench.runner.outcome import judge
from epbench.runner.phases import launch_phases
from epbench.runner.server import ForkServer, launch_variables
from epbench.runner.spec import LaunchSpec
from epbench.runner.watch import watch_launch

Device = Literal["cpu", "cuda"]

BARE = """
import os
import torch
import torch.distributed as dist
import torch.distributed.fsdp
device = torch.device("{device}", int(os.environ["LOCAL_RANK"])) if "{device}" == "cuda" else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
total = torch.ones((), device=device)
dist.all_reduce(total)
assert total.item() == dist.get_world_size()
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Overhead:
    """Seconds by round of a bare torchrun and of ours, which is ``start_up`` plus ``teardown``."""

    server_s: float  # importing torch once, before all rounds
    bare_s: Mapping[int, float]
    start_up_s: Mapping[int, float]
    teardown_s: Mapping[int, float]

    @property
    def ours_s(self) -> dict[int, float]:
        """By round."""
        return {index: self.start_up_s[index] + self.teardown_s[index] for index in self.start_up_s}

    @property
    def ratio(self) -> Interval:
        """Ours over the bare torchrun's, median over median, with its 95 % interval over rounds."""
        ratio = ratio_interval(self.bare_s, self.ours_s)
        assert ratio is not None, "there was no round"
        return ratio


def launch_overhead(directory: Path, *, ranks: int, rounds: int, device: Device) -> Overhead:
    """Alternates the two ``rounds`` times, each first in every other round. Raises if either fails."""
    script = directory / "bare.py"
    script.write_text(BARE.format(device=device), encoding="utf-8")
    variables = launch_variables(device)
    bare_s, ours = {}, {}
    with ForkServer(variables, directory / "server.log") as server:
        began_s = time.perf_counter()
        server.start()
        server_s = time.perf_counter() - began_s
        for index in range(rounds):
            if index % 2:
                ours[index] = _ours(server, directory, ranks=ranks, index=index, device=device)
            bare_s[index] = _bare(script, ranks=ranks, variables=variables)
            if not index % 2:
                ours[index] = _ours(server, directory, ranks=ranks, index=index, device=device)
    phases = {name: {index: found[name] for index, found in sorted(ours.items())} for name in ("start_up", "teardown")}
    return Overhead(server_s, bare_s, phases["start_up"], phases["teardown"])


def _bare(script: Path, *, ranks: int, variables: Mapping[str, str]) -> float:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(script)]
    began_s = time.perf_counter()
    subprocess.run([sys.executable, *command], env=dict(variables), check=True, capture_output=True)
    return time.perf_counter() - began_s


def _ours(server: ForkServer, directory: Path, *, ranks: int, index: int, device: Device) -> dict[str, float]:
    spec = LaunchSpec(
        cell=Cell(layout=Layout(dp_shard=ranks)),
        kind="canary",
        index=index,
        order=index,
        device=device,
        measure=MeasureSpec(),
        detailed=False,
        directory=directory / f"launch-{index}",
    )
    end = watch_launch(server, spec, interrupted=lambda: False, on_progress=lambda _: None)
    verdict = judge(end)
    assert verdict.outcome == "ok", verdict.reason
    return launch_phases(end, analysis_s=0.0)


def main() -> None:
    """Measures and prints each round, then the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = launch_overhead(Path(directory), ranks=asked.ranks, rounds=asked.rounds, device=asked.device)
    print(f"fork server started in {found.server_s:.2f} s, once")
    for index, bare_s in found.bare_s.items():
        ours = f"start-up {found.start_up_s[index]:.2f} s + teardown {found.teardown_s[index]:.2f} s"
        print(f"round {index}: bare torchrun {bare_s:.2f} s, ours {found.ours_s[index]:.2f} s ({ours})")
    bounds = f" [{found.ratio.low:.3f}, {found.ratio.high:.3f}]" if found.ratio.known else ""
    print(f"ratio {found.ratio.value:.3f}{bounds}")


if __name__ == "__main__":
    main()
