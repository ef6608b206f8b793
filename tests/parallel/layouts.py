"""The table of layouts: eight ranks, small sizes, and in words what is special about each row.

A row is run eager and compiled, with each kind of activation checkpointing: :func:`complete`. What is run every
time is :func:`sample`, a fixed part of it.
"""

from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, get_args

from epbench.cells import Cell, Mode, ModelSpec, TrainSpec
from epbench.layout import Layout

__all__ = ["MODEL", "PACKED", "ROWS", "SIGMOID", "TRAIN", "WORLD_SIZE", "Case", "Row", "complete", "sample"]

WORLD_SIZE = 8
MODEL = ModelSpec(vocab_size=128)
TRAIN = TrainSpec(seq_len=32, global_batch_size=8, micro_batch_size=1)
SIGMOID: dict[str, Any] = {
    "scoring_func": "sigmoid",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "router_bias_update_rate": 0.05,
}
PACKED: dict[str, Any] = {"seq_len": 96, "packing": "lognormal"}

Checkpointing = Literal["none", "full", "selective"]


@dataclass(frozen=True)
class Row:
    """One layout of one model; ``model`` and ``train`` say what differs from the defaults above."""

    special: str
    layout: Layout
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    routing: str = "natural"

    def cell(self, mode: Mode = "eager", checkpointing: Checkpointing = "none") -> Cell:
        """The row as a cell."""
        train = TRAIN.model_copy(update={**self.train, "activation_checkpointing": checkpointing})
        model = MODEL.model_copy(update=self.model)
        return Cell(layout=self.layout, mode=mode, routing=self.routing, model=model, train=train)


@dataclass(frozen=True)
class Case:
    """A row in one mode with one kind of checkpointing. ``str()`` names a test."""

    row: Row
    mode: Mode
    checkpointing: Checkpointing

    def __str__(self) -> str:
        return f"{self.row.layout.slug}, {self.row.special}; {self.mode}, {self.checkpointing}"

    @property
    def cell(self) -> Cell:
        return self.row.cell(self.mode, self.checkpointing)


ROWS = (
    Row("FSDP alone, every rank has all experts in turn", Layout(dp_shard=8)),
    Row("one expert a rank, none of them under FSDP", Layout(dp_shard=8, ep=8)),
    Row("two ranks share the experts of one ep rank", Layout(dp_shard=8, ep=4)),
    Row("four ranks share the experts of one ep rank", Layout(dp_shard=8, ep=2)),
    Row("replicas alone, no weight is sharded", Layout(dp_replicate=8)),
    Row("HSDP of dense weights and of experts, over different ranks", Layout(dp_replicate=2, dp_shard=4, ep=2)),
    Row("HSDP, and experts under no FSDP but that of replicas", Layout(dp_replicate=2, dp_shard=4, ep=4)),
    Row("HSDP with tp, ep over dp", Layout(dp_replicate=2, dp_shard=2, tp=2, ep=2)),
    Row("tp alone beside FSDP, all experts on every rank", Layout(dp_shard=4, tp=2)),
    Row("ep borrows tp", Layout(dp_shard=4, tp=2, ep=2)),
    Row("ep borrows tp and all of dp", Layout(dp_shard=4, tp=2, ep=8)),
    Row("experts split, none elsewhere", Layout(dp_shard=4, tp=2, etp=2)),
    Row("experts split and spread over all that is left", Layout(dp_shard=4, tp=2, ep=4, etp=2)),
    Row("three dense axes, experts not spread", Layout(dp_shard=2, cp=2, tp=2)),
    Row("three dense axes, ep borrows tp", Layout(dp_shard=2, cp=2, tp=2, ep=2)),
    Row("three dense axes, ep borrows tp and cp", Layout(dp_shard=2, cp=2, tp=2, ep=4)),
    Row("three dense axes, ep borrows all of them", Layout(dp_shard=2, cp=2, tp=2, ep=8)),
    Row("three dense axes, experts split", Layout(dp_shard=2, cp=2, tp=2, etp=2)),
    Row("three dense axes, experts split and spread over cp", Layout(dp_shard=2, cp=2, tp=2, ep=2, etp=2)),
    Row("as many ranks a sequence as kv heads, ep over cp", Layout(dp_shard=2, cp=4, ep=4)),
    Row("kv heads repeated on four ranks each", Layout(cp=8), {"num_key_value_heads": 2}),
    Row("tp as wide as the kv heads, ep over the world", Layout(dp_shard=2, tp=4, ep=8)),
    Row("experts split four ways and spread", Layout(dp_shard=2, tp=4, ep=2, etp=4)),
    Row("more ranks than experts: FSDP cuts each on its width", Layout(dp_shard=8, ep=2), {"num_experts": 4}),
    Row("more ranks than experts under tp and cp", Layout(dp_shard=2, cp=2, tp=2, ep=2), {"num_experts": 4}),
    Row("a dense first layer", Layout(dp_shard=4, tp=2, ep=4), {"mlp_only_layers": (0,)}),
    Row("every second layer dense", Layout(dp_shard=8, ep=4), {"num_layers": 4, "decoder_sparse_step": 2}),
    Row("embedding and lm_head are one weight", Layout(dp_shard=8, ep=8), {"tie_word_embeddings": True}),
    Row("one weight, cut by tp", Layout(dp_shard=4, tp=2, ep=2, etp=2), {"tie_word_embeddings": True}),
    Row("shared experts, summed with split ones", Layout(dp_shard=4, tp=2, etp=2), {"n_shared_experts": 1}),
    Row(
        "shared experts on sequence-sharded tokens, weights kept after forward",
        Layout(dp_shard=2, cp=2, tp=2, ep=4),
        {"n_shared_experts": 2},
        {"reshard_after_forward": False},
    ),
    Row("sigmoid, groups and a moving bias", Layout(dp_shard=2, cp=2, tp=2, ep=8), SIGMOID),
    Row(
        "a moving bias where tp ranks route the same tokens, HSDP",
        Layout(dp_replicate=2, dp_shard=2, tp=2, ep=2, etp=2),
        SIGMOID,
    ),
    Row(
        "scores before experts, no clipping",
        Layout(dp_shard=8, ep=4),
        {"score_before_experts": True},
        {"max_grad_norm": 0.0},
    ),
    Row(
        "forced routing over chunks of the sequence, scores before split experts",
        Layout(dp_shard=2, cp=2, tp=2, ep=2, etp=2),
        {"score_before_experts": True},
        routing="round_robin",
    ),
    Row("packed documents under cp and tp", Layout(dp_shard=2, cp=2, tp=2, ep=4), train=PACKED),
    Row("two micro-batches of two sequences", Layout(dp_shard=2, cp=4, ep=2), train={"micro_batch_size": 2}),
    Row(
        "everything at once",
        Layout(dp_shard=2, cp=2, tp=2, ep=4),
        {**SIGMOID, "n_shared_experts": 2, "mlp_only_layers": (0,), "tie_word_embeddings": True},
        {**PACKED, "micro_batch_size": 2},
    ),
)

_CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
# what is left to --all-layouts: rows whose axes another row has too
_NOT_EVERY_TIME = frozenset(
    {
        "two ranks share the experts of one ep rank",
        "four ranks share the experts of one ep rank",
        "HSDP, and experts under no FSDP but that of replicas",
        "ep borrows tp",
        "experts split, none elsewhere",
        "three dense axes, experts not spread",
        "three dense axes, ep borrows tp",
        "three dense axes, ep borrows tp and cp",
        "three dense axes, ep borrows all of them",
        "three dense axes, experts split and spread over cp",
        "one weight, cut by tp",
        "shared experts on sequence-sharded tokens, weights kept after forward",
        "scores before experts, no clipping",
        "two micro-batches of two sequences",
        "as many ranks a sequence as kv heads, ep over cp",
    }
)
# what is compiled every time: no more, since eight ranks that compile on two cores take as long as six eager cases
_COMPILED = (
    "a moving bias where tp ranks route the same tokens, HSDP",
    "more ranks than experts: FSDP cuts each on its width",
    "packed documents under cp and tp",
)


def complete() -> list[Case]:
    """Every row in both modes with every kind of checkpointing."""
    return [Case(*each) for each in product(ROWS, get_args(Mode), _CHECKPOINTING)]


def sample() -> list[Case]:
    """Rows with every axis, eager, the kinds of checkpointing in turn; some compiled, once with each kind."""
    rows = [row for row in ROWS if row.special not in _NOT_EVERY_TIME]
    eager = [Case(row, "eager", _CHECKPOINTING[at % 3]) for at, row in enumerate(rows)]
    by_name = {row.special: row for row in ROWS}
    return eager + [Case(by_name[name], "compiled", how) for name, how in zip(_COMPILED, _CHECKPOINTING, strict=True)]
