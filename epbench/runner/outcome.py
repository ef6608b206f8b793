"""What ended a launch, from what its ranks said, how the agent saw them end, and whether the watchdog
stepped in.

The order of the questions matters: a node that is gone and a file that cannot be written explain all else, and no
cell is to blame for them; want of memory on any rank explains everybody else's error; an exception of a rank's own
explains the closed connections of its peers; a signal leaves no exception at all; and only when nobody has a cause of
their own is the launch called hung.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epbench.errors import UnfitMachineError
from epbench.runner.ranklog import Failure, RankState
from epbench.runner.victims import (
    EXIT_UNWRITABLE,
    is_out_of_memory,
    is_secondary,
    is_unwritable,
    requested_memory,
)
from epbench.runner.watch import LaunchEnd
from epbench.store import read_json
from epbench.writing import room

__all__ = ["Verdict", "judge", "require_fit"]

_SHOWN_CHARACTERS = 300
_SIGTERM = -15  # how the agent ends the peers of the rank that failed
_SIGKILL = -9
_PERHAPS_MEMORY = " (the kernel ends processes like this when the host is out of memory)"


@dataclass(frozen=True)
class Verdict:
    """How a launch ended, and why in a sentence (None: it is ``ok``)."""

    outcome: Literal["ok", "oom", "timeout", "crashed", "interrupted"]
    reason: str | None = None
    requested_bytes: int | None = None  # of ``oom``: what the allocator was asked for
    unfit: bool = False  # the machine's fault: a launch that says nothing of its cell


@dataclass(frozen=True)
class _Failed:
    state: RankState
    failure: Failure

    @property
    def out_of_memory(self) -> bool:
        return is_out_of_memory(self.failure.kind, self.failure.message)

    @property
    def unwritable(self) -> bool:
        return is_unwritable(self.failure.kind, self.failure.message)

    @property
    def secondary(self) -> bool:
        return is_secondary(self.failure.kind, self.failure.message)


def judge(end: LaunchEnd) -> Verdict:
    """The verdict on a launch that has ended."""
    if end.stop == "interrupted":
        return Verdict("interrupted", "ended by the keyboard")
    if end.lost:
        return Verdict("crashed", f"{end.lost}, during {_furthest_phase(end)}", unfit=True)
    if damaged := [tail.state.rank for tail in end.tails if tail.damaged]:
        return Verdict("crashed", f"the log of {_ranks(damaged)} holds lines that no rank writes", unfit=True)
    if end.exit_code == 0 and all(state.done for state in end.ranks):
        return Verdict("ok")
    failed = [_Failed(state, state.failure) for state in end.ranks if state.failure]
    failed.sort(key=lambda one: one.failure.time_s)
    return (
        _unwritable(end, failed)
        or _out_of_memory(failed)
        or _own_exception(failed)
        or _killed(end)
        or _hung(end)
        or _unexplained(end, failed)
    )


def require_fit(verdict: Verdict, launch: Path) -> None:
    """Raises UnfitMachineError if the machine is to blame for how a launch ended: its cell is not judged by it."""
    if verdict.unfit:
        where = "" if str(launch) in (verdict.reason or "") else f" in '{launch}'"
        raise UnfitMachineError(f"{verdict.reason}{where}")


def _unwritable(end: LaunchEnd, failed: Sequence[_Failed]) -> Verdict | None:
    """A rank, or the agent, that could not write: it said so, or its exit code does where it could not even that."""
    for one in failed:
        if one.unwritable:
            what = f"rank {one.state.rank} could not write during {one.failure.phase}: {_first_line(one.failure)}"
            return Verdict("crashed", what, unfit=True)
    for rank, code in _exit_codes(end).items():
        if code == EXIT_UNWRITABLE:
            state = end.ranks[rank]
            path = end.spec.rank_log(rank)
            what = f"rank {rank} could not write '{path}' during {state.phase}{room(path)}"
            return Verdict("crashed", what, unfit=True)
    if end.exit_code == EXIT_UNWRITABLE:
        where = end.spec.directory
        return Verdict("crashed", f"ranks could not write to '{where}'{room(where)}", unfit=True)
    return None


def _out_of_memory(failed: Sequence[_Failed]) -> Verdict | None:
    for one in failed:
        if one.out_of_memory:
            size = requested_memory(one.failure.message)
            asked = f": asked for {_shown_bytes(size)}" if size else ""
            where = f"rank {one.state.rank} ran out of memory during {one.failure.phase}"
            return Verdict("oom", where + asked, requested_bytes=size)
    return None


def _own_exception(failed: Sequence[_Failed]) -> Verdict | None:
    return next((_raised(one) for one in failed if not one.secondary), None)


def _raised(one: _Failed) -> Verdict:
    message = _first_line(one.failure)
    where = f"rank {one.state.rank} raised {one.failure.kind} during {one.failure.phase}"
    return Verdict("crashed", f"{where}: {message}" if message else where)


def _first_line(failure: Failure) -> str:
    lines = failure.message.strip().splitlines()
    return _shortened(lines[0]) if lines else ""


def _shown_bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size} B"


def _killed(end: LaunchEnd) -> Verdict | None:
    """A rank that ended without an exception, as the elastic agent saw it."""
    for rank, code in _exit_codes(end).items():
        state = end.ranks[rank]
        if state.failure is None and code != _SIGTERM:
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            what = f"rank {rank} {how} during {state.phase}"
            return _killed_for_memory(end, what) if code == _SIGKILL else Verdict("crashed", what)
    return None


def _killed_for_memory(end: LaunchEnd, what: str) -> Verdict:
    """Signal 9 is also how the kernel frees memory; it counts how often it does."""
    if end.oom_kills:
        return Verdict("oom", f"{what}: {_ended_by_the_kernel(end.oom_kills)}")
    return Verdict("crashed", what + (_PERHAPS_MEMORY if end.oom_kills is None else ""))


def _ended_by_the_kernel(count: int) -> str:
    processes = "a process" if count == 1 else f"{count} processes"
    return f"the kernel ended {processes} because the host was out of memory"


def _exit_codes(end: LaunchEnd) -> dict[int, int]:
    """Rank -> how the elastic agent saw it end; negative for a signal."""
    told = [read_json(end.spec.agent_file(node)) or {} for node in range(end.spec.nodes)]
    failures = {int(rank): code for one in told for rank, code in one.get("failures", {}).items()}
    return dict(sorted(failures.items()))


def _hung(end: LaunchEnd) -> Verdict | None:
    measure = end.spec.measure
    if end.stop == "stalled":
        silent = f"no sign of life from {_ranks(end.stuck)} for {measure.progress_timeout_s:g} s"
        return Verdict("timeout", f"{silent}; {_furthest_behind(end)}{_deaf(end)}")
    if end.stop == "too long":
        return Verdict("timeout", f"not done after {measure.launch_timeout_s:g} s; {_furthest_behind(end)}{_deaf(end)}")
    return None


def _furthest_phase(end: LaunchEnd) -> str:
    return max(end.ranks, key=lambda state: state.place).phase


def _deaf(end: LaunchEnd) -> str:
    return "".join(f"; rank {rank} was {why}, so it has no stack" for rank, why in end.deaf.items())


def _ranks(numbers: Sequence[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))


def _furthest_behind(end: LaunchEnd) -> str:
    """Who is behind by phase and step or, among ranks that are level, by collectives issued."""
    ranks = end.ranks
    last = min(state.place for state in ranks)
    behind = [state for state in ranks if state.place == last]
    if len(behind) == len(ranks):
        return f"all ranks stood {_place(behind[0])}{_fewest_collectives(end)}"
    ahead = max(ranks, key=lambda state: state.place)
    return f"{_ranks([s.rank for s in behind])} stood {_place(behind[0])}, others came as far as {_place(ahead)}"


def _fewest_collectives(end: LaunchEnd) -> str:
    """All ranks of a layout issue the same collectives: the one with fewer is what the others wait for."""
    issued = {state.rank: _collectives_issued(end, state.rank) for state in end.ranks}
    known = {rank: count for rank, count in issued.items() if count is not None}
    if len(set(known.values())) < 2:
        return ""
    fewest, most = min(known.values()), max(known.values())
    behind = [rank for rank, count in known.items() if count == fewest]
    return f", {_ranks(behind)} after {fewest} collectives and others after {most}"


def _collectives_issued(end: LaunchEnd, rank: int) -> int | None:
    entries = (read_json(end.spec.flight_record(rank)) or {}).get("entries")
    return max((entry["record_id"] for entry in entries), default=-1) + 1 if entries is not None else None


def _place(state: RankState) -> str:
    return f"in {state.phase}" + ("" if state.step is None else f" after step {state.step}")


def _unexplained(end: LaunchEnd, failed: Sequence[_Failed]) -> Verdict:
    """Only victims, or nobody at all, said anything."""
    silent = [state for state in end.ranks if state.failure is None and not state.done]
    if failed and silent:
        names = _ranks([state.rank for state in silent])
        return Verdict("crashed", f"{names} ended without a word during {silent[0].phase}")
    if failed:
        return _raised(failed[0])
    if end.oom_kills:
        return Verdict("oom", _ended_by_the_kernel(end.oom_kills))
    if end.exit_code is None:
        return Verdict("crashed", f"the process that ranks are forked from ended without a word{_on_node(end)}")
    return Verdict("crashed", f"the launch's agent ended with code {end.exit_code}{_on_node(end)}: {_last_words(end)}")


def _on_node(end: LaunchEnd) -> str:
    return f" on node {end.failed_node}" if end.failed_node else ""


def _last_words(end: LaunchEnd) -> str:
    try:
        lines = end.spec.error_log(end.failed_node).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "it wrote nothing"
    return _shortened(next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing"))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
