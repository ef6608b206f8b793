"""Names that the stack gives its collectives in a trace, and the way back from a name to its meaning.

The parallel layer writes these as ``record_function`` annotations around every collective that it issues; the
analysis layer reads them out of the trace. The same text on gloo and NCCL, in eager and compiled code, so
that a collective never has to be recognised by its kernel's name or by its place in the step.
"""

from dataclasses import dataclass, field

__all__ = ["PHASES", "PURPOSES", "CommLabel"]

PURPOSES = (
    "count_exchange",  # how many rows each rank sends to each expert
    "dispatch",  # token rows to the ranks that hold their experts
    "combine",  # expert outputs back to the ranks that hold their tokens
    "ulysses_in",  # sequence-sharded to head-sharded, before attention
    "ulysses_out",  # head-sharded to sequence-sharded, after attention
    "cp_gather",  # chunks of the sequence put together; no step of ours needs it
    "tp",  # sequence all-gather, reduce-scatter and reductions of tensor parallelism
    "norm",  # the scalar reductions of gradient norm and loss
    "router_bias",  # the load of every expert, which moves the routers' correction biases
    "weights",  # whole weights for a consumer, outside the step
    "sweep",  # alone, of one size after another: what the wires can do
    "sweep_uneven",  # the same with one rank getting ten times as much
)
PHASES = ("forward", "backward", "recompute")

_PREFIX = "comm:"


@dataclass(frozen=True)
class CommLabel:
    """One collective as its issuer describes it.

    ``root`` is the lowest global rank of the group and, with ``axis``, names the group; ``size`` is its number
    of ranks. ``sent_bytes`` and ``received_bytes`` are the whole local buffers, own part included; ``kept_bytes``
    is that own part, of an all-to-all with uneven splits, where nothing else tells how much of a buffer leaves.
    """

    op: str  # all_to_all | all_gather | reduce_scatter | all_reduce
    purpose: str
    phase: str
    axis: str
    root: int
    size: int
    sent_bytes: int
    received_bytes: int
    kept_bytes: int | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """The annotation's name."""
        kept = "" if self.kept_bytes is None else f"|{self.kept_bytes}"
        return (
            f"{_PREFIX}{self.op}|{self.purpose}|{self.phase}|{self.axis}"
            f"|{self.root}|{self.size}|{self.sent_bytes}|{self.received_bytes}{kept}"
        )

    @classmethod
    def parse(cls, text: str) -> "CommLabel | None":
        """The label of an annotation, or None if it is not one of ours."""
        if not text.startswith(_PREFIX):
            return None
        op, purpose, phase, axis, *numbers = text.removeprefix(_PREFIX).split("|")
        root, size, sent, received, *kept = map(int, numbers)
        return cls(op, purpose, phase, axis, root, size, sent, received, *kept)
