"""Launches over several nodes with scripted partners, and what a person types to join one."""

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from epbench.cells import Cell
from epbench.cli import app
from epbench.errors import ScenarioError, UnfitMachineError
from epbench.flops import peak_flops_per_s
from epbench.layout import Layout
from epbench.provenance import describe_environment
from epbench.runner import nodes
from epbench.runner.interrupt import Interrupt
from epbench.runner.joining import Member
from epbench.runner.link import Link, LinkLostError, connect, gloo_interface, listen, parse_endpoint, read_token
from epbench.runner.node import _Node
from epbench.runner.nodes import NodeServers
from epbench.runner.victims import EXIT_UNWRITABLE
from tests.runner.conftest import make_spec
from tests.runner.node_helpers import DEADLINE_S, TOKEN, wait_for, write_scenario

# ---------------------------------------------------------------- a launch


class Scripted:
    """A fork server that answers what it is told to."""

    def __init__(self) -> None:
        self.pipe, self.mine = socket.socketpair()
        self.answers: list[dict[str, Any]] = []
        self.orders: list[tuple[str, int]] = []
        self.process_id = None

    def fileno(self) -> int:
        return self.pipe.fileno()

    def start(self, interrupted: Callable[[], bool] = lambda: False) -> bool:
        return True

    def launch(self, _: Path, *, node: int = 0) -> None:
        self.orders.append(("launch", node))

    def ends(self, answer: dict[str, Any]) -> None:
        self.answers.append(answer)
        self.mine.send(b"x")

    def wait(self, _: float) -> dict[str, Any] | None:
        return self.answers.pop(0) if self.answers else None

    def ask(self, ranks: Mapping[int, int]) -> dict[int, str | None]:
        return {rank: "stopped by a signal" if process_id == 13 else None for rank, process_id in ranks.items()}

    def end_launch(self) -> None:
        self.orders.append(("end", 0))

    def close(self) -> None:
        self.pipe.close()
        self.mine.close()


class Pair:
    """A head and a node in one process, each with a scripted fork server."""

    def __init__(self, directory: Path) -> None:
        self.here, self.there = Scripted(), Scripted()
        with listen("127.0.0.1", 0) as door:
            self.node_link = connect("127.0.0.1", door.getsockname()[1], timeout_s=10)
            self.member = Member(1, "other", Link(door.accept()[0]))
        self.head = NodeServers(self.here, [self.member])  # type: ignore[arg-type]
        cell = Cell(layout=Layout(dp_shard=4))
        self.spec = self.head.place(make_spec(directory, "good", cell=cell))
        self.spec.path.write_text(self.spec.model_dump_json())
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        with suppress(LinkLostError, OSError):
            _Node(self.node_link, self.there, 1).serve(Interrupt())  # type: ignore[arg-type]

    def __enter__(self) -> "Pair":
        self.thread.start()
        assert self.head.start()
        self.head.launch(self.spec.path)
        wait_for(lambda: bool(self.there.orders))
        return self

    def __exit__(self, *_: object) -> None:
        self.member.order(done=True)
        self.thread.join(DEADLINE_S)
        for one in (self.node_link, self.member.link, self.here, self.there):
            one.close()


def test_orders_reach_every_node_with_its_number(tmp_path: Path) -> None:
    with Pair(tmp_path) as pair:
        assert (pair.here.orders, pair.there.orders) == ([("launch", 0)], [("launch", 1)])
        assert pair.spec.rendezvous is not None
        assert pair.spec.rendezvous.startswith("127.0.0.1:")
        assert pair.head.ask({0: 10, 3: 13}) == {0: None, 3: "stopped by a signal"}


@pytest.mark.parametrize(
    ("here", "there", "answer"),
    [
        (0, 0, (0, 0)),
        (0, 1, (1, 1)),
        (None, 0, (None, 0)),
        (1, EXIT_UNWRITABLE, (EXIT_UNWRITABLE, 1)),
    ],
)
def test_a_launch_ends_when_it_has_ended_everywhere(
    tmp_path: Path, here: int | None, there: int | None, answer: tuple[int | None, int]
) -> None:
    with Pair(tmp_path) as pair:
        pair.here.ends({"ended": here})
        assert pair.head.wait(0) is None
        pair.there.ends({"ended": there})
        found = pair.head.wait(DEADLINE_S)
        assert found is not None
        assert (found["ended"], found["node"], found["lost"]) == (*answer, None)


@pytest.mark.parametrize("bad", ["here", "there"])
def test_what_is_left_of_a_launch_that_failed_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr(nodes, "_GRACE_S", 0.0)
    with Pair(tmp_path) as pair:
        getattr(pair, bad).ends({"ended": 1})
        found = pair.head.wait(DEADLINE_S)
        assert found is not None
        assert (found["ended"], found["node"]) == (1, 0 if bad == "here" else 1)
        other = pair.there if bad == "here" else pair.here
        assert other.orders[-1] == ("end", 0)


def test_a_node_that_does_not_end_its_ranks_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_END_S", 0.2)
    ended = threading.Event()
    with Pair(tmp_path) as pair:
        monkeypatch.setattr(pair.there, "end_launch", lambda: ended.wait(DEADLINE_S))
        pair.head.end_launch()
        with pytest.raises(UnfitMachineError, match=r"node 1 \('other'\) is lost: it did not end its ranks"):
            pair.head.start()
        ended.set()


def test_a_connection_that_breaks_ends_the_launch_everywhere(tmp_path: Path) -> None:
    with Pair(tmp_path) as pair:
        pair.node_link._socket.shutdown(socket.SHUT_RDWR)
        found = pair.head.wait(DEADLINE_S)
        assert found is not None
        assert found["lost"] == "node 1 ('other') is lost: it closed the connection"
        assert pair.here.orders[-1] == ("end", 0)


def test_a_device_on_two_nodes_is_another_device_of_the_same_peak() -> None:
    one, two = (describe_environment("cpu", world_size=4, nodes=nodes) for nodes in (1, 2))
    assert two.device_name == f"{one.device_name} on 2 nodes"
    assert (one.nodes, two.nodes, one.digest == two.digest) == (1, 2, False)
    assert peak_flops_per_s("NVIDIA H200 on 2 nodes") == peak_flops_per_s("NVIDIA H200") == 989e12


# ---------------------------------------------------------------- what a person types


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [("node1:29400", ("node1", 29400)), ("[::1]:80", ("::1", 80)), ("10.0.0.1:1", ("10.0.0.1", 1))],
)
def test_an_endpoint(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["", "node1", "node1:", ":29400", "node1:0", "node1:65536", "node1:x", "node1:²"])
def test_no_endpoint(text: str) -> None:
    with pytest.raises(ScenarioError, match="an address is HOST:PORT"):
        parse_endpoint(text)


def test_the_head_writes_a_secret_once_and_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "token"
    first = read_token(file, make=True)
    assert (read_token(file, make=True), read_token(file)) == (first, first)
    assert (len(first), file.stat().st_mode & 0o777) == (32, 0o600)


def test_the_interface_of_an_address() -> None:
    assert gloo_interface("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo"}
    assert gloo_interface("192.0.2.1") == {}


JOIN = ["node", "--join", "127.0.0.1:1", "--join-timeout", "1s", "--node-rank"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run", "{scenario}", "--nodes", "2"], 2, "--nodes 2 needs --listen HOST:PORT"),
        (["run", "{scenario}", "--listen", "h:1"], 2, "--listen is for runs on several nodes"),
        (["run", "{scenario}", "--nodes", "3", "--listen", "127.0.0.1:1"], 2, "3 nodes cannot share 4 ranks equally"),
        (["run", "{scenario}", "--nodes", "2", "--listen", "h"], 2, "an address is HOST:PORT such as"),
        (
            ["run", "{scenario}", "--nodes", "2", "--listen", "h:1", "--token-file", "/nowhere/t"],
            2,
            "cannot write a secret",
        ),
        ([*JOIN, "0"], 2, "--node-rank must be 1 or more, got 0"),
        ([*JOIN, "1"], 6, "no head at '127.0.0.1', port 1, for 1 s: Connection refused"),
        (["node", "--join", "x" * 3000, "--node-rank", "1"], 2, "an address is HOST:PORT such as"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], code: int, sentence: str
) -> None:
    monkeypatch.setenv("EPBENCH_TOKEN", TOKEN)
    scenario = str(write_scenario(tmp_path))
    result = CliRunner().invoke(app, [scenario if word == "{scenario}" else word for word in arguments])
    assert result.exit_code == code
    assert sentence in result.output
    assert len(result.output) < 400


def test_a_secret_that_is_short_or_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "short"):
        monkeypatch.setenv("EPBENCH_TOKEN", value)
        result = CliRunner().invoke(app, [*JOIN, "1"])
        assert (result.exit_code, "16 characters or more in $EPBENCH_TOKEN" in result.output) == (2, True)
