"""Runs over several nodes: who may join, what ends a launch, and the whole of it between two network namespaces.

Where this user may not make a namespace (that needs root), the second node is one more process of this machine at its
loopback address, with the same host name: then clocks are compared, and all else is the same.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from epbench.errors import UnfitMachineError
from epbench.records import EnvironmentRecord
from epbench.runner import joining
from epbench.runner.joining import Meeting, Welcome, differences, gathered, introduce
from epbench.runner.launch import RunOptions, run_scenario
from epbench.runner.launched import LaunchRecord
from epbench.runner.link import Link, connect, listen
from epbench.runner.server import ForkServer
from epbench.runner.spec import LaunchSpec
from epbench.runner.watch import watch_launch
from epbench.scenario import load_scenario
from epbench.store import read_record
from tests.runner.conftest import ROOT, variables_of_tests
from tests.runner.node_helpers import DEADLINE_S, TOKEN, wait_for, write_scenario
from tests.runner.runs import cells_of, gone

# ---------------------------------------------------------------- two nodes


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[str, list[str]]]:
    """An address of this machine, and the words that make a command one of another machine."""
    name, here, there = (f"epb{os.getpid()}{end}" for end in ("", "h", "n"))
    lines = f"""
        ip netns add {name}
        ip link add {here} type veth peer name {there} netns {name}
        ip addr add 10.231.77.1/30 dev {here}
        ip link set {here} up
        ip -n {name} addr add 10.231.77.2/30 dev {there}
        ip -n {name} link set {there} up
        ip -n {name} link set lo up
    """
    try:
        for line in lines.strip().splitlines():
            subprocess.run(line.split(), check=True, capture_output=True)
        rename = 'hostname node1; exec "$@"'
        yield "10.231.77.1", ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", rename, "sh"]
    except (OSError, subprocess.CalledProcessError):
        yield "127.0.0.1", []
    finally:
        for line in (f"ip link del {here}", f"ip netns del {name}"):
            with suppress(OSError):
                subprocess.run(line.split(), check=False, capture_output=True)


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as door:
        return int(door.getsockname()[1])


def ranks_in_warmup(reports: Path) -> list[int]:
    """Processes of the ranks of the launch that hangs, once all are where it does."""
    logs = [log for spec in reports.glob("*/cells/*/launch-0/spec.json")
            if "hanging_in_warmup" in spec.read_text() for log in spec.parent.glob("rank-*.jsonl")]  # fmt: skip
    lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    there = [ranks for ranks in lines if any(line.get("phase") == "warmup" for line in ranks)]
    return [line["process_id"] for ranks in there for line in ranks if "process_id" in line]


class Outcome:
    """What the run of two nodes came to."""

    def __init__(self, path: Path, error: UnfitMachineError, ranks: list[int]) -> None:
        self.path, self.error, self.ranks = path, error, ranks


@pytest.fixture(scope="module")
def two_nodes(machines: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """A run on two nodes whose second one is killed in the middle of the last launch."""
    host, elsewhere = machines
    scenario = write_scenario(tmp_path_factory.mktemp("nodes"))
    reports = scenario.parent / "reports"
    port = free_port(host)
    command = [*elsewhere, sys.executable, "-m", "epbench", "node", "--join", f"{host}:{port}", "--node-rank", "1"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (variables_of_tests() | {"EPBENCH_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}).items():
            patch.setenv(name, value)
        node = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with ThreadPoolExecutor(1) as pool:
            killed = pool.submit(kill_when_hanging, node, reports)
            options = RunOptions(reports_dir=reports, nodes=2, listen=f"{host}:{port}", join_timeout_s=DEADLINE_S)
            with pytest.raises(UnfitMachineError) as raised:
                run_scenario(load_scenario(scenario), options)
            ranks = killed.result()
        (path,) = reports.iterdir()
        yield Outcome(path, raised.value, ranks)


def kill_when_hanging(node: subprocess.Popen[bytes], reports: Path) -> list[int]:
    try:
        wait_for(lambda: len(ranks_in_warmup(reports)) == 4)
        return ranks_in_warmup(reports)
    finally:
        node.kill()
        node.wait()


def test_two_nodes_compute_what_one_does(
    two_nodes: Outcome, machines: tuple[str, list[str]], server: ForkServer, tmp_path: Path
) -> None:
    launch = two_nodes.path / "cells" / cells_of(two_nodes.path)["qwen3_moe"].cell / "launch-0"
    spec, record = LaunchSpec.read(launch / "spec.json"), read_record(launch / "launch.json", LaunchRecord)
    assert (spec.nodes, spec.ranks_per_node) == (2, 2)
    alone = spec.model_copy(update={"nodes": 1, "rendezvous": None, "directory": tmp_path, "detailed": False})
    end = watch_launch(server, alone, interrupted=lambda: False, on_progress=lambda _: None)
    assert record is not None
    assert record.value is not None  # which does not stand on a machine as busy as this one may be
    assert record.losses == pytest.approx(end.tails[0].results["timing"]["losses"], abs=1e-6)
    if machines[1]:
        assert len(record.value.host["names"]) == 2
        assert "ranks on 2 hosts share no clock" in str(record.note)


def test_a_rank_that_dies_on_another_node_is_a_row(two_nodes: Outcome) -> None:
    cell = cells_of(two_nodes.path)["killed_in_warmup"]
    assert (cell.outcome, cell.reason) == ("crashed", "rank 3 was killed by signal 9 during warmup")


def test_a_node_that_is_killed_ends_the_run_and_leaves_nothing(two_nodes: Outcome) -> None:
    said = r"node 1 \('.*'\) is lost: .*, during warmup in '.*'; what is finished is kept, go on with: "
    again = r"epbench run .* --resume .* --nodes 2 --listen .*"
    assert two_nodes.error.exit_code == 6
    assert re.match(said + again, str(two_nodes.error)), str(two_nodes.error)
    assert cells_of(two_nodes.path)["hanging_in_warmup"].outcome is None
    assert len(two_nodes.ranks) == 4
    wait_for(lambda: gone(two_nodes.ranks))


# ---------------------------------------------------------------- joining


def environment(**changes: Any) -> EnvironmentRecord:
    known: dict[str, Any] = {
        "device": "cpu", "device_name": "a processor", "device_memory_bytes": None, "world_size": 4, "nodes": 2,
        "driver": None, "torch": "2.13.0", "cuda": None, "nccl": None, "python": "3.11.4",
        "variables": {"NCCL_ALGO": "Ring", "NCCL_SOCKET_IFNAME": "eth0"}, "code": "c0de", "digest": "d",
    }  # fmt: skip
    return EnvironmentRecord(**known | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"digest": "another"}, []),
        ({"torch": "2.11.0"}, ["torch (head: '2.13.0', node: '2.11.0')"]),
        (
            {"code": "x", "python": "3.12.1"},
            ["python (head: '3.11.4', node: '3.12.1')", "code (head: 'c0de', node: 'x')"],
        ),
        ({"variables": {"NCCL_ALGO": "Ring", "NCCL_SOCKET_IFNAME": "eth1"}}, []),
        ({"variables": {"NCCL_ALGO": "Tree"}}, ["variable NCCL_ALGO (head: 'Ring', node: 'Tree')"]),
        ({"variables": {}}, ["variable NCCL_ALGO (head: 'Ring', node: None)"]),
    ],
)
def test_differences_of_two_nodes(changes: dict[str, Any], told: list[str]) -> None:
    assert differences(environment(), environment(**changes)) == told


def joins(port: int, *, token: str = TOKEN, rank: int = 1, told: Callable[[Welcome], EnvironmentRecord]) -> Welcome:
    link = connect("127.0.0.1", port, timeout_s=10)
    try:
        return introduce(link, token, rank, environment_of=told)
    finally:
        link.close()


def unable(_: Welcome) -> EnvironmentRecord:
    raise UnfitMachineError("this machine has 1 usable GPUs for 2 ranks\x1b[2J")


REFUSED = [
    ({}, {"torch": "2.11.0"}, "it differs from the head in torch (head: '2.13.0', node: '2.11.0')"),
    ({"told": unable}, {}, r"this machine has 1 usable GPUs for 2 ranks\x1b[2J"),
]


@pytest.mark.parametrize(("options", "changes", "why"), REFUSED)
def test_a_node_that_cannot_take_part_ends_the_run(
    tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], why: str
) -> None:
    where = Meeting(2, "127.0.0.1", free_port("127.0.0.1"), TOKEN, timeout_s=20)
    with ThreadPoolExecutor(1) as pool:
        node = pool.submit(joins, where.port, **{"told": lambda _: environment(**changes)} | options)
        with pytest.raises(UnfitMachineError) as raised, gathered(where, tmp_path, environment(), stacks=()):
            pass
        with pytest.raises(UnfitMachineError):
            node.result()
    assert str(raised.value).endswith(f") cannot take part: {why}")


def test_a_node_that_does_not_see_the_run_directory_cannot_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_read_proof", lambda _: None)
    where = Meeting(2, "127.0.0.1", free_port("127.0.0.1"), TOKEN, timeout_s=20)
    with ThreadPoolExecutor(1) as pool:
        node = pool.submit(joins, where.port, told=lambda _: environment())
        with (
            pytest.raises(UnfitMachineError, match="it does not see the run directory; --reports-dir must be on"),
            gathered(where, tmp_path, environment(), stacks=()),
        ):
            pass
        with pytest.raises(UnfitMachineError, match="it refuses this node: it does not see the run directory"):
            node.result()


def test_a_node_that_never_comes_is_named(tmp_path: Path) -> None:
    where = Meeting(3, "127.0.0.1", free_port("127.0.0.1"), TOKEN, timeout_s=0.3)
    with (
        pytest.raises(UnfitMachineError, match=r"^nodes 1, 2 of 3 did not join within 0.3 s$"),
        gathered(where, tmp_path, environment(), stacks=()),
    ):
        pass


STRANGERS: list[tuple[dict[str, Any], str]] = [
    ({"token": "another secret of 16"}, "it is of another version of epbench, or has another secret"),
    ({"rank": 0}, "its node rank is 0; it must be 1 to 1, the head is node 0"),
    ({"rank": 7}, "its node rank is 7; it must be 1 to 1, the head is node 0"),
]


def test_who_may_not_join_is_told_why_and_the_others_still_can(tmp_path: Path) -> None:
    """Wrong secrets and ranks, somebody who talks of other things, and at last the node that is waited for."""
    where = Meeting(2, "127.0.0.1", free_port("127.0.0.1"), TOKEN, timeout_s=30)

    def told(_: Welcome) -> EnvironmentRecord:
        return environment()

    def knock() -> list[str]:
        heard = []
        for options, _ in STRANGERS:
            with pytest.raises(UnfitMachineError) as raised:
                joins(where.port, told=told, **options)
            heard.append(str(raised.value))
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"[" * 200_000 + b"\n"):
            with socket.create_connection(("127.0.0.1", where.port), timeout=10) as stranger:
                stranger.sendall(said)
                with suppress(ConnectionError):  # the head may leave what it does not understand unread
                    while stranger.recv(4096):
                        pass
        assert joins(where.port, told=told).nodes == 2
        return heard

    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(knock)
        with gathered(where, tmp_path, environment(), stacks=()) as members:
            assert [member.rank for member in members] == [1]
    for text, (_, why) in zip(heard.result(), STRANGERS, strict=True):
        assert text.endswith(f"it refuses this node: {why}")
    assert list(tmp_path.iterdir()) == [], "what nodes were to read is gone"


def test_who_is_gone_before_the_head_looks_is_nobody() -> None:
    """As a port scanner is: it resets the connection."""
    with listen("127.0.0.1", 0) as door:
        door.settimeout(5)
        with socket.create_connection(door.getsockname()[:2], timeout=10) as scanner:
            scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert joining._knock(door) is None
        with socket.create_connection(door.getsockname()[:2], timeout=10):
            link = joining._knock(door)
        assert link is not None
        assert link.there == "127.0.0.1"
        link.close()


def test_a_head_without_the_secret_is_left(tmp_path: Path) -> None:
    """A node runs what a head says, so it asks for the same proof."""
    with listen("127.0.0.1", 0) as door, ThreadPoolExecutor(1) as pool:
        node = pool.submit(joins, door.getsockname()[1], told=lambda _: environment())
        head = Link(door.accept()[0])
        head.send({"epbench": 1, "nonce": "00"})
        assert "proof" in head.expect(10)
        head.send({"proof": "guessed"})
        with pytest.raises(UnfitMachineError, match="it has another secret"):
            node.result()
        head.close()
