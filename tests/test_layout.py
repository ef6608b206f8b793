"""Slugs both ways, legality against an independently written check, and the counts of facts 3."""

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.cells import PRESETS, ModelSpec, TrainSpec
from epbench.errors import LayoutError
from epbench.layout import Layout, legal_layouts, parse_slug, violations

QWEN3_30B = PRESETS["qwen3-30b-a3b"]
LARGE_BATCH = TrainSpec(global_batch_size=512, seq_len=4096, compute_dtype="bf16")
DEGREES = st.integers(min_value=1, max_value=64)


# ---- slugs ----


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ep4", "dp4-ep4"),
        ("dp4-ep4", "dp4-ep4"),
        ("ep4-tp2-dp2", "dp2-tp2-ep4"),
        ("tp2-etp2", "dp2-tp2-etp2"),
        ("rep2", "rep2-dp2"),
        ("rep4-dp1", "rep4"),
        ("cp2-ep4", "dp2-cp2-ep4"),
        ("tp4", "tp4"),
        ("tp1", "dp4"),
    ],
)
def test_slug_on_four_ranks_is_made_canonical(text: str, canonical: str) -> None:
    assert parse_slug(text, world_size=4).slug == canonical


def test_one_rank_is_dp1() -> None:
    assert parse_slug("dp1", world_size=1) == Layout()
    assert Layout().slug == "dp1"


def test_explicit_product_that_is_not_the_world_parses_and_is_a_violation() -> None:
    layout = parse_slug("dp2-tp4", world_size=4)
    assert layout == Layout(dp_shard=2, tp=4)
    [broken] = violations(layout, world_size=4, model=ModelSpec(), train=TrainSpec())
    assert broken == "dp_replicate x dp_shard x cp x tp = 8, but the world has 4 ranks"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an axis and its degree"),
        ("ep", "is not an axis and its degree"),
        ("dp2--ep2", "is not an axis and its degree"),
        ("dp-2", "is not an axis and its degree"),
        ("dp2.5", "is not an axis and its degree"),
        ("dp02", "is not an axis and its degree"),
        ("DP2", "is not an axis and its degree"),
        ("dp\uff12", "is not an axis and its degree"),
        ("../etc", "is not an axis and its degree"),
        ("<script>", "is not an axis and its degree"),
        ("dp2\n", "is not an axis and its degree"),
        ("dp99999999999999999999", "is not an axis and its degree"),
        ("dp0", "at least 1"),
        ("ep2-ep2", "given twice"),
        ("xp2", "unknown axis 'xp'; the axes are rep, dp, cp, tp, ep or etp"),
        ("pp2", "reserved and not yet built"),
        ("tp3", "does not divide the 4 ranks; nearest: 2 or 4"),
        ("a" * 10_000, "10000 characters"),
        ("-".join(["dp2"] * 5_000), "is not an axis and its degree"),
    ],
)
def test_malformed_slug_is_one_short_sentence(text: str, words: str) -> None:
    with pytest.raises(LayoutError) as error:
        parse_slug(text, world_size=4)
    message = str(error.value)
    assert words in message
    assert len(message) < 400
    assert message.isprintable()


@given(st.builds(Layout, DEGREES, DEGREES, DEGREES, DEGREES, DEGREES, DEGREES), st.randoms())
def test_slug_round_trip_in_any_order(layout: Layout, random: Random) -> None:
    parts = layout.slug.split("-")
    random.shuffle(parts)
    assert parse_slug("-".join(parts), world_size=layout.world_size) == layout


@given(world_size=st.integers(1, 256), tp=DEGREES, cp=DEGREES)
def test_left_out_dp_fills_the_world_or_is_refused(world_size: int, tp: int, cp: int) -> None:
    slug = f"tp{tp}-cp{cp}"
    if world_size % (tp * cp):
        with pytest.raises(LayoutError, match="does not divide"):
            parse_slug(slug, world_size=world_size)
    else:
        assert parse_slug(slug, world_size=world_size).world_size == world_size


# ---- legality ----


def is_legal(layout: Layout, *, world_size: int, model: ModelSpec, train: TrainSpec) -> bool:
    """Facts 3, written a second time as one expression per rule."""
    rep, dp, cp, tp, ep, etp = (
        layout.dp_replicate,
        layout.dp_shard,
        layout.cp,
        layout.tp,
        layout.ep,
        layout.etp,
    )
    heads, kv_heads, experts = model.num_attention_heads, model.num_key_value_heads, model.num_experts
    item = {"fp32": 4, "bf16": 2, "fp8": 1}[train.compute_dtype]
    micro = train.micro_batch_size if isinstance(train.micro_batch_size, int) else 1
    if rep * dp * cp * tp != world_size or (dp * cp * tp) % (ep * etp):
        return False
    efsdp, width = dp * cp * tp // (ep * etp), model.moe_intermediate_size // etp
    kv, local_heads = kv_heads // tp, heads // tp
    return all((
        etp in {1, tp},
        experts % ep == 0,
        train.global_batch_size % (rep * dp * micro) == 0,
        train.seq_len % (cp * tp) == 0,
        model.vocab_size % tp == 0,
        heads % tp == 0,
        kv_heads % tp == 0,
        local_heads % cp == 0,
        kv > 0 and (kv % cp == 0 or (cp % kv == 0 and (heads // kv_heads) % (cp // kv) == 0)),
        model.num_moe_layers == model.num_layers or model.intermediate_size % tp == 0,
        model.moe_intermediate_size % etp == 0,
        model.n_shared_experts * model.moe_intermediate_size % tp == 0,
        width * item % 16 == 0,
        model.hidden_size * item % 16 == 0,
        efsdp * ep <= experts or (model.hidden_size % efsdp == 0 and width % efsdp == 0),
    ))  # fmt: skip


def brute_force(world_size: int, model: ModelSpec, train: TrainSpec) -> set[Layout]:
    divisors = [k for k in range(1, world_size + 1) if world_size % k == 0]
    layouts = (Layout(*degrees) for degrees in itertools.product(divisors, repeat=6))
    return {it for it in layouts if is_legal(it, world_size=world_size, model=model, train=train)}


MODELS = {
    "tiny": ModelSpec(),
    "30b": QWEN3_30B,
    "480b": PRESETS["qwen3-coder-480b-a35b"],
    "few experts, so that efsdp splits their width": ModelSpec(num_experts=2, moe_intermediate_size=24),
    "odd width": ModelSpec(moe_intermediate_size=40, num_experts=6, vocab_size=510, intermediate_size=130),
    "one kv head, dense layers": ModelSpec(num_key_value_heads=1, mlp_only_layers=(0,), intermediate_size=72),
    "three kv heads": ModelSpec(num_key_value_heads=3, num_attention_heads=12, vocab_size=513 * 3),
    "three kv heads, shared experts": ModelSpec(
        num_key_value_heads=3, num_attention_heads=12, vocab_size=513 * 3, n_shared_experts=2
    ),
}
TRAINS = {
    "small batch": TrainSpec(),
    "large batch": LARGE_BATCH,
    "micro-batches": TrainSpec(global_batch_size=24, micro_batch_size=3, seq_len=96),
}


@pytest.mark.parametrize("train", TRAINS.values(), ids=TRAINS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
def test_legal_layouts_equal_a_brute_force_over_all_degrees(
    world_size: int, model: ModelSpec, train: TrainSpec
) -> None:
    found = legal_layouts(world_size, model, train)
    assert len(found) == len(set(found))
    assert set(found) == brute_force(world_size, model, train)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("world_size", [4, 6])
def test_violations_are_empty_exactly_for_legal_layouts(world_size: int, model: ModelSpec) -> None:
    train = TrainSpec(seq_len=96)
    for combination in itertools.product([1, 2, 3, 4], repeat=6):
        layout = Layout(*combination)
        broken = violations(layout, world_size=world_size, model=model, train=train)
        assert bool(broken) != is_legal(layout, world_size=world_size, model=model, train=train), layout


@pytest.mark.parametrize("world_size", [12, 16])
def test_larger_worlds_equal_the_brute_force_too(world_size: int) -> None:
    model = MODELS["few experts, so that efsdp splits their width"]
    train = TrainSpec(global_batch_size=48)
    assert set(legal_layouts(world_size, model, train)) == brute_force(world_size, model, train)


def test_two_gpus_have_eight_legal_layouts_of_qwen3_30b() -> None:
    slugs = [it.slug for it in legal_layouts(2, QWEN3_30B, LARGE_BATCH)]
    assert slugs == ["dp2", "dp2-ep2", "cp2", "cp2-ep2", "tp2", "tp2-ep2", "tp2-etp2", "rep2"]


@pytest.mark.parametrize(("world_size", "raw", "legal"), [(8, 40, 36), (64, 196, 105)])
def test_counts_of_tp_cp_ep_triples_of_qwen3_30b(world_size: int, raw: int, legal: int) -> None:
    """Facts 3, at etp = 1, rep = 1 and a batch and sequence that every degree divides (512 x 4096)."""
    powers = [2**k for k in range(world_size.bit_length())]
    triples = [
        (tp, cp, ep)
        for tp, cp, ep in itertools.product(powers, repeat=3)
        if world_size % (tp * cp) == 0 and world_size % ep == 0
    ]
    found = legal_layouts(world_size, QWEN3_30B, LARGE_BATCH)
    assert len(triples) == raw
    assert len([it for it in found if it.etp == 1 and it.dp_replicate == 1]) == legal


@given(world_size=st.integers(1, 96))
def test_every_legal_layout_multiplies_to_the_world_in_both_views(world_size: int) -> None:
    for layout in legal_layouts(world_size, QWEN3_30B, TrainSpec(global_batch_size=world_size, seq_len=4096)):
        assert layout.world_size == world_size
        assert layout.dp_replicate * layout.efsdp * layout.ep * layout.etp == world_size


# ---- words ----


def test_every_violated_rule_is_named_with_the_nearest_legal_value() -> None:
    layout = Layout(dp_shard=3, cp=3, tp=3, ep=5, etp=2)
    train = TrainSpec(global_batch_size=4)
    assert violations(layout, world_size=8, model=QWEN3_30B, train=train) == [
        "dp_replicate x dp_shard x cp x tp = 27, but the world has 8 ranks",
        "etp = 2 is neither 1 nor tp = 3",
        "ep x etp = 10 does not divide dp_shard x cp x tp = 27; nearest ep x etp: 9 or 27",
        "num_experts = 128 is not a multiple of ep = 5; nearest ep: 4 or 8",
        "vocab_size = 151936 is not a multiple of tp = 3; nearest tp: 2 or 4",
        "num_attention_heads = 32 is not a multiple of tp = 3; nearest tp: 2 or 4",
        "num_key_value_heads = 4 is not a multiple of tp = 3; nearest tp: 2 or 4",
        "global_batch_size = 4 is not a multiple of dp_replicate x dp_shard = 3; nearest global_batch_size: 3 or 6",
        "seq_len = 128 is not a multiple of cp x tp = 9; nearest seq_len: 126 or 135",
    ]


@pytest.mark.parametrize(
    ("layout", "model", "train", "words"),
    [
        (
            Layout(tp=2, etp=2),
            ModelSpec(moe_intermediate_size=20),
            TrainSpec(compute_dtype="bf16"),
            "moe_intermediate_size / etp = 10 is 20 bytes in bf16, not a multiple of 16; "
            "nearest moe_intermediate_size: 16 or 32",
        ),
        (
            Layout(dp_shard=2),
            ModelSpec(num_experts=1, num_experts_per_tok=1, moe_intermediate_size=32, hidden_size=64),
            TrainSpec(),
            None,
        ),
        (
            Layout(dp_shard=3, cp=1, ep=1),
            ModelSpec(num_experts=2, moe_intermediate_size=32, hidden_size=96),
            TrainSpec(global_batch_size=3),
            "efsdp x ep = 3 exceeds num_experts = 2, so efsdp = 3 must divide an expert's local width = 32; "
            "nearest efsdp: 2 or 4",
        ),
        (
            Layout(cp=8),
            ModelSpec(num_attention_heads=24, num_key_value_heads=3),
            TrainSpec(),
            "cp = 8 neither divides num_key_value_heads / tp = 3 nor is it a multiple by a divisor "
            "of the 8 query heads that share a kv head",
        ),
        (
            Layout(dp_shard=2),
            ModelSpec(),
            TrainSpec(global_batch_size=4, micro_batch_size=4),
            "global_batch_size = 4 is not a multiple of dp_replicate x dp_shard x micro_batch_size = 8; "
            "nearest global_batch_size: 8",
        ),
        (
            Layout(),
            ModelSpec(num_experts=4, num_experts_per_tok=8),
            TrainSpec(),
            "num_experts_per_tok = 8 exceeds num_experts = 4",
        ),
        (
            Layout(),
            ModelSpec(n_group=4, topk_group=5),
            TrainSpec(),
            "topk_group = 5 exceeds n_group = 4",
        ),
        (
            Layout(),
            ModelSpec(n_group=3, topk_group=2),
            TrainSpec(),
            "num_experts = 8 is not a multiple of n_group = 3; nearest n_group: 2 or 4",
        ),
        (
            Layout(),
            ModelSpec(n_group=8, topk_group=4),
            TrainSpec(),
            "n_group = 8 leaves 1 expert a group, and a group is judged by its two best experts",
        ),
        (
            Layout(),
            ModelSpec(num_experts_per_tok=5, n_group=4, topk_group=2),
            TrainSpec(),
            "num_experts_per_tok = 5 exceeds the 4 experts of topk_group = 2 groups",
        ),
        (
            Layout(),
            ModelSpec(num_experts_per_tok=4, n_group=4, topk_group=2),
            TrainSpec(),
            None,
        ),
        (
            Layout(tp=3),
            ModelSpec(num_key_value_heads=3, num_attention_heads=12, vocab_size=513 * 3, n_shared_experts=2),
            TrainSpec(seq_len=96),
            "n_shared_experts x moe_intermediate_size = 64 is not a multiple of tp = 3; nearest tp: 2 or 4",
        ),
        (
            Layout(),
            ModelSpec(head_dim=15),
            TrainSpec(),
            "head_dim = 15 is odd, and rotary embeddings need pairs",
        ),
    ],
)
def test_one_broken_rule_is_one_sentence(layout: Layout, model: ModelSpec, train: TrainSpec, words: str | None) -> None:
    broken = violations(layout, world_size=layout.world_size, model=model, train=train)
    assert broken == ([] if words is None else [words])


def test_repeated_kv_heads_are_legal_up_to_the_query_heads() -> None:
    """30B: 4 kv heads, 32 query heads; cp = 32 repeats each kv head 8 times, cp = 64 has no head to give."""
    degrees = {it.cp for it in legal_layouts(64, QWEN3_30B, LARGE_BATCH) if it.tp == 1}
    assert degrees == {1, 2, 4, 8, 16, 32}
