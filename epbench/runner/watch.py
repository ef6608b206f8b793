"""One launch from the parent's side: order it, follow its ranks, end it if it hangs, leave nothing."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from epbench.runner.processes import descendants
from epbench.runner.ranklog import RankState, RankTail
from epbench.runner.server import ForkServer
from epbench.runner.spec import LaunchSpec
from epbench.store import write_atomically

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

    @property
    def ranks(self) -> list[RankState]:
        """Where each rank was last seen."""
        return [tail.state for tail in self.tails]


def watch_launch(
    server: ForkServer,
    spec: LaunchSpec,
    *,
    interrupted: Callable[[], bool],
    on_progress: Callable[[RankState], None],
) -> LaunchEnd:
    """Run one launch to its end, whatever that is. ``on_progress`` is told of the rank furthest behind."""
    server.start()
    watch = _Watch(spec)
    spec.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(spec.path, spec.model_dump_json(indent=2))
    server.launch(spec.path)
    while (answer := server.wait(_POLL_S)) is None:
        watch.poll()
        on_progress(watch.last)
        if stop := watch.stop(interrupted()):
            return _stop(server, watch, stop)
    watch.poll()
    return watch.ended(answer["ended"])


class _Watch:
    """The ranks of one running launch, and when each was last heard of (by the parent's own clock)."""

    def __init__(self, spec: LaunchSpec) -> None:
        self.spec = spec
        self.tails = [RankTail(spec.rank_log(rank), rank) for rank in range(spec.cell.world_size)]
        self._ordered_s, self._started = time.time(), time.monotonic()
        self._heard = [self._started] * len(self.tails)

    def poll(self) -> None:
        now = time.monotonic()
        for rank, tail in enumerate(self.tails):
            if tail.poll():
                self._heard[rank] = now

    @property
    def last(self) -> RankState:
        return min((tail.state for tail in self.tails), key=lambda state: state.place)

    def stuck(self) -> tuple[int, ...]:
        """Ranks that have been silent for too long; one that is done or has failed may be."""
        limit = time.monotonic() - self.spec.measure.progress_timeout_s
        states = (tail.state for tail in self.tails)
        waiting = [state.rank for state in states if not state.done and state.failure is None]
        return tuple(rank for rank in waiting if self._heard[rank] < limit)

    def stop(self, interrupted: bool) -> Stop | None:
        """Why the launch must end now, if it must."""
        if interrupted:
            return "interrupted"
        if self.stuck():
            return "stalled"
        elapsed_s = time.monotonic() - self._started
        return "too long" if elapsed_s > self.spec.measure.launch_timeout_s else None

    def ended(self, exit_code: int | None, stop: Stop | None = None, stuck: tuple[int, ...] = ()) -> LaunchEnd:
        elapsed_s = time.monotonic() - self._started
        return LaunchEnd(
            self.spec, elapsed_s, exit_code, stop=stop, stuck=stuck, tails=self.tails, ordered_s=self._ordered_s
        )


def _stop(server: ForkServer, watch: _Watch, stop: Stop) -> LaunchEnd:
    stuck = watch.stuck()
    if stop != "interrupted":
        _ask_where_they_stand(server, watch)
    server.end_launch()
    watch.poll()
    return watch.ended(None, stop, stuck)


def _ask_where_they_stand(server: ForkServer, watch: _Watch) -> None:
    """Let every rank write its stacks and its flight record, within a second."""
    ours = set(descendants(server.process_id)) if server.process_id else set()
    asked = []
    for state in (tail.state for tail in watch.tails):
        if state.process_id is not None and state.process_id in ours and not state.done:
            os.kill(state.process_id, signal.SIGUSR1)
            os.kill(state.process_id, signal.SIGUSR2)
            asked += [watch.spec.stack_dump(state.rank), watch.spec.flight_record(state.rank)]
    deadline = time.monotonic() + _DUMP_S
    while time.monotonic() < deadline and not all(path.exists() and path.stat().st_size for path in asked):
        time.sleep(0.02)
