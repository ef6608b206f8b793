"""Who is to blame, from hand-made ends of launches."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epbench.runner.host_memory import oom_kills
from epbench.runner.outcome import Verdict, judge
from epbench.runner.ranklog import Failure, RankLog, RankState, RankTail
from epbench.runner.victims import is_out_of_memory, is_secondary, requested_memory
from epbench.runner.watch import LaunchEnd
from tests.runner.conftest import make_spec

VICTIM = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


def end_of(directory: Path, states: list[RankState], **changes: Any) -> LaunchEnd:
    spec = make_spec(directory, "good")
    tails = []
    for state in states:
        tail = RankTail(spec.rank_log(state.rank), state.rank)
        tail.state = state
        tails.append(tail)
    known: dict[str, Any] = {"elapsed_s": 1.0, "exit_code": 1, "tails": tails}
    return LaunchEnd(spec, **(known | changes))


def failed(rank: int, time_s: float, kind: str, message: str) -> RankState:
    return RankState(rank, "timing", 3, failure=Failure(time_s, "timing", kind, message, ""))


def test_the_cause_is_found_behind_an_earlier_victim(tmp_path: Path) -> None:
    states = [failed(0, 1.0, "RuntimeError", VICTIM), failed(1, 1.1, "KeyError", "'router'")]
    verdict = judge(end_of(tmp_path, states))
    assert verdict == Verdict("crashed", "rank 1 raised KeyError during timing: 'router'")


def test_the_first_of_two_causes_is_named(tmp_path: Path) -> None:
    states = [failed(0, 2.0, "ValueError", "b"), failed(1, 1.0, "ValueError", "a")]
    assert judge(end_of(tmp_path, states)).reason == "rank 1 raised ValueError during timing: a"


def test_memory_explains_every_other_error(tmp_path: Path) -> None:
    states = [failed(0, 1.0, "ValueError", "a"), failed(1, 2.0, "RuntimeError", "CUDA error: out of memory")]
    assert judge(end_of(tmp_path, states)) == Verdict("oom", "rank 1 ran out of memory during timing")


BY_THE_KERNEL = ": the kernel ended a process because the host was out of memory"
PERHAPS = " (the kernel ends processes like this when the host is out of memory)"


@pytest.mark.parametrize(
    ("oom_kills", "outcome", "more"), [(0, "crashed", ""), (1, "oom", BY_THE_KERNEL), (None, "crashed", PERHAPS)]
)
def test_a_signal_is_the_cause_when_only_victims_spoke(
    tmp_path: Path, oom_kills: int | None, outcome: Any, more: str
) -> None:
    states = [failed(0, 1.0, "RuntimeError", VICTIM), RankState(1, "warmup", 2)]
    end = end_of(tmp_path, states, oom_kills=oom_kills)
    end.spec.agent_file().write_text(json.dumps({"failures": {"1": -9}}))
    assert judge(end) == Verdict(outcome, f"rank 1 was killed by signal 9 during warmup{more}")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"oom_kills": 0}, Verdict("crashed", "the process that ranks are forked from ended without a word")),
        ({"oom_kills": 2}, Verdict("oom", "the kernel ended 2 processes because the host was out of memory")),
    ],
)
def test_all_ranks_gone_with_their_server(tmp_path: Path, changes: dict[str, Any], verdict: Verdict) -> None:
    end = end_of(tmp_path, [RankState(0, "timing"), RankState(1, "timing")], exit_code=None, **changes)
    assert judge(end) == verdict


V1 = {"proc/self/cgroup": "4:memory:/job\n", "sys/fs/cgroup/memory/job/memory.oom_control": "under_oom 0\noom_kill 3\n"}
V1_IN_A_CONTAINER = {"proc/self/cgroup": "4:memory:/job\n", "sys/fs/cgroup/memory/memory.oom_control": "oom_kill 4\n"}
V2 = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.events": "max 7\noom 9\noom_kill 5\n"}
HOST = {"proc/self/cgroup": "0::/\n", "proc/vmstat": "nr_free_pages 12\noom_kill 6\n"}


@pytest.mark.parametrize(("files", "count"), [(V1, 3), (V1_IN_A_CONTAINER, 4), (V2, 5), (HOST, 6), ({}, None)])
def test_the_kernels_own_count_is_found(tmp_path: Path, files: dict[str, str], count: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == count


def test_a_rank_that_the_agent_ended_is_not_blamed(tmp_path: Path) -> None:
    end = end_of(tmp_path, [RankState(0, "timing", 2), RankState(1, "timing", 2)])
    end.spec.agent_file().write_text(json.dumps({"failures": {"0": -15, "1": -11}}))
    assert judge(end).reason == "rank 1 was killed by signal 11 during timing"


def test_silence_is_blamed_when_the_agent_blamed_a_victim(tmp_path: Path) -> None:
    end = end_of(tmp_path, [failed(0, 1.0, "RuntimeError", VICTIM), RankState(1, "timing", 2)])
    end.spec.agent_file().write_text(json.dumps({"failures": {"0": 1}}))
    assert judge(end) == Verdict("crashed", "rank 1 ended without a word during timing")


def test_an_agent_that_never_started_ranks_is_quoted(tmp_path: Path) -> None:
    end = end_of(tmp_path, [RankState(0), RankState(1)])
    end.spec.error_log().write_text("Traceback\nOSError: no port left\n\n")
    assert judge(end).reason == "the launch's agent ended with code 1: OSError: no port left"


def test_an_exit_code_alone_makes_nothing_ok(tmp_path: Path) -> None:
    end = end_of(tmp_path, [RankState(0, "done"), RankState(1, "timing")], exit_code=0)
    assert judge(end).outcome == "crashed"


def test_a_stall_names_who_is_behind(tmp_path: Path) -> None:
    end = end_of(tmp_path, [RankState(0, "timing", 4), RankState(1, "timing", 3)], stop="stalled", stuck=(0, 1))
    assert judge(end) == Verdict(
        "timeout",
        "no sign of life from ranks 0, 1 for 60 s; rank 1 stood in timing after step 3, "
        "others came as far as in timing after step 4",
    )


def test_a_crash_during_a_stall_is_a_crash(tmp_path: Path) -> None:
    end = end_of(tmp_path, [failed(0, 1.0, "ValueError", "a"), RankState(1, "build")], stop="stalled", stuck=(1,))
    assert judge(end).outcome == "crashed"


@pytest.mark.parametrize(
    ("kind", "message", "secondary"),
    [
        ("RuntimeError", VICTIM, True),
        ("RuntimeError", "[/x/gloo] Timed out waiting 60000ms for recv operation to complete", True),
        ("DistBackendError", "NCCL communicator was aborted on rank 1", True),
        ("RuntimeError", "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", True),
        ("DistNetworkError", "anything", True),
        ("RuntimeError", "The size of tensor a (3) must match the size of tensor b (4)", False),
        ("ValueError", "connection is not an axis", False),
    ],
)
def test_victims_are_told_from_causes(kind: str, message: str, secondary: bool) -> None:
    assert is_secondary(kind, message) is secondary


@pytest.mark.parametrize(
    ("kind", "message", "size"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has", 20 * 2**20 + 2**19),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.", 4096),
        ("_ArrayMemoryError", "Unable to allocate 1.00 TiB for an array with shape (1,)", 2**40),
        ("MemoryError", "", None),
        ("AcceleratorError", "CUDA error: out of memory", None),
    ],
)
def test_want_of_memory_in_all_its_words(kind: str, message: str, size: int | None) -> None:
    assert is_out_of_memory(kind, message)
    assert requested_memory(message) == size


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), byte=st.none() | st.binary(min_size=1, max_size=12))
def test_a_torn_or_damaged_rank_log_is_no_traceback(tmp_path: Path, place: int, byte: bytes | None) -> None:
    """A torn last line is not there yet; a whole line that no rank writes is the machine's fault."""
    spec = make_spec(tmp_path, "good")
    for rank in range(2):
        log = RankLog(spec.rank_log(rank))
        log.phase("start", process_id=1, host="h")
        log.beat("warmup", 0)
        log.result("timing", {"steps_s": [0.25, float("nan")]})
        log.phase("done")
        log.close()
    file = spec.rank_log(1)
    whole = file.read_bytes()
    place %= len(whole)
    file.write_bytes(whole[:place] if byte is None else whole[:place] + byte + whole[place + len(byte) :])
    tails = [RankTail(spec.rank_log(rank), rank) for rank in range(2)]
    for tail in tails:
        tail.poll()
    verdict = judge(LaunchEnd(spec, elapsed_s=1.0, exit_code=0, tails=tails))
    assert tails[1].damaged == verdict.unfit
    assert verdict.outcome == ("ok" if tails[1].state.done and not tails[1].damaged else "crashed")
