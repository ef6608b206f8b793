"""What torch.compile has done in this process so far, read from Dynamo's own counters.

Reading costs a few dictionary look-ups, so it is done around every warm-up step: a step that compiled
something says nothing about how long a step takes, and one that compiles while it is timed spoils the
launch.
"""

import sys
from dataclasses import dataclass

__all__ = ["CompileCounters"]


@dataclass(frozen=True)
class CompileCounters:
    """Totals since the process started. A fresh launch starts from zero."""

    graphs: int  # handed to the backend, recompilations included; frames are not counted under fullgraph
    graph_breaks: int
    compile_s: float  # wall seconds in the compiler, forward and backward graphs

    @classmethod
    def read(cls) -> "CompileCounters":
        """The counters now; all zero if nothing has imported the compiler yet."""
        utils = sys.modules.get("torch._dynamo.utils")
        if utils is None:
            return cls(0, 0, 0.0)
        return cls(
            graphs=utils.counters["stats"]["unique_graphs"],
            graph_breaks=sum(utils.counters["graph_break"].values()),
            compile_s=utils.calculate_time_spent()["total_wall_time"],
        )

    @property
    def used(self) -> bool:
        """Whether anything was compiled at all; if not, the other numbers mean nothing."""
        return self.graphs > 0
