"""One launch from the parent's side: order it, follow its ranks, end it if it hangs, leave nothing."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from epbench.runner.host_memory import oom_kills
from epbench.runner.ranklog import RankState, RankTail
from epbench.runner.server import LaunchServer
from epbench.runner.spec import LaunchSpec
from epbench.writing import write_atomically, writing

__all__ = ["LaunchEnd", "Stop", "watch_launch"]

_POLL_S = 0.25  # how stale the parent may be; each poll stats one small file a rank
_DUMP_S = 1.0

Stop = Literal["stalled", "too long", "interrupted"]


@dataclass(frozen=True)
class LaunchEnd:
    """All that is known of a launch when no process of it is left."""

    spec: LaunchSpec
    elapsed_s: float
    exit_code: int | None  # of the agent; None: ended by order, or died with its server
    stop: Stop | None = None
    stuck: tuple[int, ...] = ()  # ranks without news when the watchdog stepped in
    tails: Sequence[RankTail] = field(default=(), repr=False)
    ordered_s: float = 0.0  # when, in seconds since the epoch, which is the clock of the ranks' lines
    deaf: Mapping[int, str] = field(default_factory=dict)  # why ranks could not say where they stood
    oom_kills: int | None = None  # processes that the kernel ended for want of memory meanwhile; None: it does not tell
    failed_node: int = 0  # whose agent ended badly first
    lost: str | None = None  # which other node is gone, and how

    @property
    def ranks(self) -> list[RankState]:
        """Where each rank was last seen."""
        return [tail.state for tail in self.tails]


def watch_launch(
    server: LaunchServer,
    spec: LaunchSpec,
    *,
    interrupted: Callable[[], bool],
    on_progress: Callable[[RankState], None],
) -> LaunchEnd:
    """Run one launch to its end, whatever that is. ``on_progress`` is told of the rank furthest behind."""
    started = server.start(interrupted)
    spec = server.place(spec) if started else spec
    watch = _Watch(spec)
    if not started:
        return watch.ended({}, "interrupted")
    write_atomically(spec.path, spec.model_dump_json(indent=2))
    server.launch(spec.path)
    while (answer := server.wait(_POLL_S)) is None:
        watch.poll()
        on_progress(watch.last)
        if stop := watch.stop(interrupted()):
            return _stop(server, watch, stop)
    watch.poll()
    return watch.ended(answer)


class _Watch:
    """The ranks of one running launch, and when each was last heard of (by the parent's own clock)."""

    def __init__(self, spec: LaunchSpec) -> None:
        self.spec = spec
        self.tails = [RankTail(spec.rank_log(rank), rank) for rank in range(spec.cell.world_size)]
        self._ordered_s, self._started = time.time(), time.monotonic()
        self._heard = [self._started] * len(self.tails)
        self._oom_kills = oom_kills()

    def poll(self) -> None:
        now = time.monotonic()
        for rank, tail in enumerate(self.tails):
            if tail.poll():
                self._heard[rank] = now

    @property
    def states(self) -> list[RankState]:
        return [tail.state for tail in self.tails]

    @property
    def last(self) -> RankState:
        return min(self.states, key=lambda state: state.place)

    def stuck(self) -> tuple[int, ...]:
        """Ranks that have been silent for too long; one that is done or has failed may be."""
        limit = time.monotonic() - self.spec.measure.progress_timeout_s
        waiting = [state.rank for state in self.states if not state.done and state.failure is None]
        return tuple(rank for rank in waiting if self._heard[rank] < limit)

    def stop(self, interrupted: bool) -> Stop | None:
        """Why the launch must end now, if it must."""
        if interrupted:
            return "interrupted"
        if self.stuck():
            return "stalled"
        elapsed_s = time.monotonic() - self._started
        return "too long" if elapsed_s > self.spec.measure.launch_timeout_s else None

    def ended(
        self,
        answer: Mapping[str, Any],
        stop: Stop | None = None,
        *,
        stuck: tuple[int, ...] = (),
        deaf: Mapping[int, str] | None = None,
    ) -> LaunchEnd:
        before, after = self._oom_kills, oom_kills()
        elsewhere: int = answer.get("oom_kills", 0)
        return LaunchEnd(
            self.spec,
            time.monotonic() - self._started,
            answer.get("ended"),
            stop=stop,
            stuck=stuck,
            tails=self.tails,
            ordered_s=self._ordered_s,
            deaf=deaf or {},
            oom_kills=None if before is None or after is None else after - before + elsewhere,
            failed_node=answer.get("node", 0),
            lost=answer.get("lost"),
        )


def _stop(server: LaunchServer, watch: _Watch, stop: Stop) -> LaunchEnd:
    stuck = watch.stuck()
    deaf = {} if stop == "interrupted" else _ask_where_they_stand(server, watch)
    server.end_launch()
    watch.poll()
    return watch.ended({}, stop, stuck=stuck, deaf=deaf)


def _ask_where_they_stand(server: LaunchServer, watch: _Watch) -> dict[int, str]:
    """Let every rank write its stacks and its flight record, within a second; returns why some cannot."""
    ranks = {state.rank: state.process_id for state in watch.states if state.process_id and not state.done}
    asked = server.ask(ranks)
    deaf = {rank: why for rank, why in asked.items() if why}
    files = [name(rank) for rank in asked if rank not in deaf for name in _dumps(watch.spec)]
    deadline = time.monotonic() + _DUMP_S
    while time.monotonic() < deadline and not all(path.exists() and path.stat().st_size for path in files):
        time.sleep(0.02)
    for rank, why in deaf.items():
        path = watch.spec.stack_dump(rank)
        with writing(path):
            path.write_text(f"no stack: rank {rank} (process {ranks[rank]}) was {why}\n", encoding="utf-8")
    return deaf


def _dumps(spec: LaunchSpec) -> tuple[Callable[[int], Path], ...]:
    return spec.stack_dump, spec.flight_record
