"""Parallelism layouts: degrees, slugs both ways, legality in words, and all legal layouts of a world.

Two views of one world, both row-major over the same ranks (facts 3)::

    dense    (dp_replicate, dp_shard, cp, tp)          FSDP of dense weights over dp_shard x cp
    expert   (dp_replicate, efsdp, ep[, etp])          FSDP of experts over efsdp

so the expert axis is the innermost block and stays inside a node whenever ep <= GPUs per node.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epbench.errors import LayoutError
from epbench.wording import either, nearest, shown

if TYPE_CHECKING:
    from epbench.cells import ModelSpec, TrainSpec

__all__ = ["Layout", "legal_layouts", "parse_slug", "violations"]

_AXES = {"rep": "dp_replicate", "dp": "dp_shard", "cp": "cp", "tp": "tp", "ep": "ep", "etp": "etp"}
_PART = re.compile(r"([a-z]+)(0|[1-9][0-9]{0,4})", re.ASCII)
_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp8": 1}
_GROUPED_MM_ALIGNMENT_BYTES = 16  # what F.grouped_mm asks of the strides of its operands


@dataclass(frozen=True, order=True)
class Layout:
    """Degrees of the mesh axes. ``etp`` is 1 (experts never split on their hidden axis) or ``tp``."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1

    @property
    def world_size(self) -> int:
        """Ranks: the product of the dense view."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that read different sequences: dp_replicate x dp_shard."""
        return self.dp_replicate * self.dp_shard

    @property
    def efsdp(self) -> int:
        """Ranks that FSDP shards one expert's weights over (meaningful for legal layouts only)."""
        return self.dp_shard * self.cp * self.tp // (self.ep * self.etp)

    @property
    def slug(self) -> str:
        """Canonical name, e.g. ``dp2-tp2-ep4``; axes of degree 1 are left out, one rank is ``dp1``."""
        names = (("rep", self.dp_replicate), ("dp", self.dp_shard), ("cp", self.cp), ("tp", self.tp))
        experts = (("ep", self.ep), ("etp", self.etp))
        return "-".join(f"{name}{degree}" for name, degree in names + experts if degree > 1) or "dp1"


def parse_slug(text: str, *, world_size: int) -> Layout:
    """The layout that a slug names, in any order of axes.

    ``dp`` may be left out and is then ``world_size / (rep x cp x tp)``; a slug that names ``dp`` is taken at
    its word, and a product that differs from ``world_size`` is a matter of :func:`violations`. Raises
    LayoutError if the text is malformed or the left-out ``dp`` would not be a whole number.
    """
    degrees = _degrees(text)
    if "dp_shard" in degrees:
        return Layout(**degrees)
    others = math.prod(degrees.get(axis, 1) for axis in ("dp_replicate", "cp", "tp"))
    if world_size % others:
        raise LayoutError(
            f"layout {shown(text)}: rep x cp x tp = {others} does not divide the {world_size} ranks; "
            f"nearest: {nearest(others, _divisors(world_size))}"
        )
    return Layout(**degrees, dp_shard=world_size // others)


def _degrees(text: str) -> dict[str, int]:
    degrees: dict[str, int] = {}
    parts = text.split("-") if len(text) <= 80 else [text]
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None:
            raise LayoutError(
                f"layout {shown(text)}: {shown(part)} is not an axis and its degree; write e.g. dp2-tp2-ep4"
            )
        axis, degree = _known_axis(match[1], text=text), int(match[2])
        if degree == 0:
            raise LayoutError(f"layout {shown(text)}: a degree is at least 1, and {shown(part)} is 0")
        if axis in degrees:
            raise LayoutError(f"layout {shown(text)}: axis '{match[1]}' is given twice")
        degrees[axis] = degree
    return degrees


def _known_axis(name: str, *, text: str) -> str:
    if name == "pp":
        raise LayoutError(f"layout {shown(text)}: pp (pipeline parallelism) is reserved and not yet built")
    if name not in _AXES:
        raise LayoutError(f"layout {shown(text)}: unknown axis {shown(name)}; the axes are {either(_AXES)}")
    return _AXES[name]


@dataclass(frozen=True)
class _Case:
    """One question of legality; the rules below answer it one by one."""

    layout: Layout
    world_size: int
    model: "ModelSpec"
    train: "TrainSpec"

    @property
    def span(self) -> int:
        """Ranks of one replica: what the expert view divides."""
        return self.layout.dp_shard * self.layout.cp * self.layout.tp

    @property
    def item_bytes(self) -> int:
        return _ITEM_BYTES[self.train.compute_dtype]


def violations(layout: Layout, *, world_size: int, model: "ModelSpec", train: "TrainSpec") -> list[str]:
    """Every rule that ``layout`` breaks on ``world_size`` ranks, in words, with the nearest legal value.

    An empty list means legal. The rules are those of facts 3, and what any Qwen3-MoE needs of its own sizes.
    """
    case = _Case(layout, world_size, model, train)
    rules = (_sizes, _world, _expert_mesh, _expert_sharding, _alignment, _tensor, _ulysses, _work)
    return [broken for rule in rules for broken in rule(case)]


def _sizes(case: _Case) -> Iterator[str]:
    model = case.model
    if model.num_experts_per_tok > model.num_experts:
        yield f"num_experts_per_tok = {model.num_experts_per_tok} exceeds num_experts = {model.num_experts}"
    if model.num_attention_heads % model.num_key_value_heads:
        yield (
            f"num_attention_heads = {model.num_attention_heads} is not a multiple of "
            f"num_key_value_heads = {model.num_key_value_heads}"
        )
    yield from _groups(model)
    if model.head_dim % 2:
        yield f"head_dim = {model.head_dim} is odd, and rotary embeddings need pairs"


def _groups(model: "ModelSpec") -> Iterator[str]:
    """A token chooses its experts within groups, and a group is judged by its two best experts."""
    groups, kept, experts = model.n_group, model.topk_group, model.num_experts
    if kept > groups:
        yield f"topk_group = {kept} exceeds n_group = {groups}"
    if experts % groups:
        yield _not_a_multiple("num_experts", experts, "n_group", groups)
        return
    size = experts // groups
    if groups > 1 and size < 2:
        yield f"n_group = {groups} leaves {size} expert a group, and a group is judged by its two best experts"
    if groups > 1 and kept <= groups and model.num_experts_per_tok > kept * size:
        yield (
            f"num_experts_per_tok = {model.num_experts_per_tok} exceeds the {kept * size} experts of "
            f"topk_group = {kept} groups"
        )


def _world(case: _Case) -> Iterator[str]:
    if case.layout.world_size != case.world_size:
        yield (
            f"dp_replicate x dp_shard x cp x tp = {case.layout.world_size}, but the world has {_ranks(case.world_size)}"
        )


def _expert_mesh(case: _Case) -> Iterator[str]:
    layout, experts = case.layout, case.model.num_experts
    if layout.etp not in (1, layout.tp):
        yield f"etp = {layout.etp} is neither 1 nor tp = {layout.tp}"
    if case.span % (layout.ep * layout.etp):
        yield (
            f"ep x etp = {layout.ep * layout.etp} does not divide dp_shard x cp x tp = {case.span}"
            f"{_nearest_divisor('ep x etp', layout.ep * layout.etp, case.span)}"
        )
    if experts % layout.ep:
        yield _not_a_multiple("num_experts", experts, "ep", layout.ep)


def _expert_sharding(case: _Case) -> Iterator[str]:
    layout, model = case.layout, case.model
    if model.moe_intermediate_size % layout.etp:
        yield _not_a_multiple("moe_intermediate_size", model.moe_intermediate_size, "etp", layout.etp)
        return
    if case.span % (layout.ep * layout.etp) or layout.efsdp * layout.ep <= model.num_experts:
        return
    widths = {
        "hidden_size": model.hidden_size,
        "an expert's local width": model.moe_intermediate_size // layout.etp,
    }
    for name, width in widths.items():
        if width % layout.efsdp:
            yield (
                f"efsdp x ep = {layout.efsdp * layout.ep} exceeds num_experts = {model.num_experts}, so "
                f"efsdp = {layout.efsdp} must divide {name} = {width}"
                f"{_nearest_divisor('efsdp', layout.efsdp, width)}"
            )


def _alignment(case: _Case) -> Iterator[str]:
    """Rows of the experts' operands are multiples of 16 bytes."""
    multiple = _GROUPED_MM_ALIGNMENT_BYTES // case.item_bytes
    etp = case.layout.etp
    for name, size, degree in (
        ("hidden_size", case.model.hidden_size, 1),
        ("moe_intermediate_size", case.model.moe_intermediate_size, etp),
    ):
        if size % degree == 0 and size // degree % multiple:
            local = f"{name} / etp" if degree > 1 else name
            yield (
                f"{local} = {size // degree} is {size // degree * case.item_bytes} bytes in "
                f"{case.train.compute_dtype}, not a multiple of {_GROUPED_MM_ALIGNMENT_BYTES}; "
                f"nearest {name}: {_nearest_multiple(size, multiple * degree)}"
            )


def _tensor(case: _Case) -> Iterator[str]:
    model, tp = case.model, case.layout.tp
    sizes = {
        "vocab_size": model.vocab_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
    }
    if model.num_moe_layers < model.num_layers:
        sizes["intermediate_size"] = model.intermediate_size
    if model.num_moe_layers and model.n_shared_experts:
        sizes["n_shared_experts x moe_intermediate_size"] = model.n_shared_experts * model.moe_intermediate_size
    for name, size in sizes.items():
        if size % tp:
            yield _not_a_multiple(name, size, "tp", tp)


def _ulysses(case: _Case) -> Iterator[str]:
    """Heads are spread over cp; kv heads too, or each is repeated on cp / kv ranks."""
    model, cp, tp = case.model, case.layout.cp, case.layout.tp
    if model.num_attention_heads % tp or model.num_key_value_heads % tp:
        return
    heads, kv_heads = model.num_attention_heads // tp, model.num_key_value_heads // tp
    if heads % cp:
        yield _not_a_multiple("num_attention_heads / tp", heads, "cp", cp)
    group = model.num_attention_heads / model.num_key_value_heads
    if kv_heads % cp and (cp % kv_heads or group % (cp // kv_heads)):
        yield (
            f"cp = {cp} neither divides num_key_value_heads / tp = {kv_heads} nor is it a multiple "
            f"by a divisor of the {group:g} query heads that share a kv head"
        )


def _work(case: _Case) -> Iterator[str]:
    """Equal sequences for every data rank, equal tokens for every rank of a sequence."""
    layout, train = case.layout, case.train
    micro = 1 if train.micro_batch_size == "auto" else train.micro_batch_size
    product = "dp_replicate x dp_shard" + ("" if train.micro_batch_size == "auto" else " x micro_batch_size")
    for name, value, divisor_name, divisor in (
        ("global_batch_size", train.global_batch_size, product, layout.data_ranks * micro),
        ("seq_len", train.seq_len, "cp x tp", layout.cp * layout.tp),
    ):
        if value % divisor:
            yield (
                f"{name} = {value} is not a multiple of {divisor_name} = {divisor}; "
                f"nearest {name}: {_nearest_multiple(value, divisor)}"
            )


def legal_layouts(world_size: int, model: "ModelSpec", train: "TrainSpec") -> list[Layout]:
    """All layouts of ``world_size`` ranks that break no rule, plain ones first, replicated ones last."""
    legal = [
        layout
        for layout in _candidates(world_size, model, train)
        if not violations(layout, world_size=world_size, model=model, train=train)
    ]
    return sorted(legal, key=lambda it: (it.dp_replicate, -it.dp_shard, -it.cp, -it.tp, it.etp, it.ep))


def _candidates(world_size: int, model: "ModelSpec", train: "TrainSpec") -> Iterator[Layout]:
    """Layouts of the right product that pass the cheap necessary conditions; the rules judge the rest."""
    for tp in _divisors(math.gcd(world_size, model.num_key_value_heads)):
        for cp in _divisors(math.gcd(world_size // tp, model.num_attention_heads // tp)):
            data_ranks = world_size // (tp * cp)
            for dp_replicate in _divisors(data_ranks) if train.global_batch_size % data_ranks == 0 else ():
                dp_shard = data_ranks // dp_replicate
                for etp in {1, tp}:
                    for ep in _divisors(math.gcd(dp_shard * cp * tp // etp, model.num_experts)):
                        yield Layout(dp_replicate, dp_shard, cp, tp, ep, etp)


def _divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return sorted({*small, *(number // k for k in small)})


def _not_a_multiple(name: str, value: int, axis: str, degree: int) -> str:
    return f"{name} = {value} is not a multiple of {axis} = {degree}{_nearest_divisor(axis, degree, value)}"


def _nearest_divisor(name: str, value: int, number: int) -> str:
    """``; nearest ep: 2 or 4``; nothing for numbers so large that they cannot be meant."""
    return f"; nearest {name}: {nearest(value, _divisors(number))}" if number < 1 << 32 else ""


def _nearest_multiple(value: int, step: int) -> str:
    below = value // step * step
    return either(number for number in (below, below + step) if number > 0)


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"
