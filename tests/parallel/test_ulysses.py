"""Ulysses against attention over the whole sequence on one rank: forward and backward, bound or explicit, compiled.

Every rank makes the same whole tensors, keeps its chunk, and compares its chunk of the result.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from epbench.parallel.communication import Axis
from epbench.parallel.context import (
    context_parallel,
    gather_sequence_outputs,
    heads_to_sequence,
    sequence_to_heads,
    slice_sequence,
)
from tests.model.compare import assert_same
from tests.ranks import run_on_ranks

WORLD, BATCH, SEQ_LEN, HEADS, SIZE = 4, 2, 12, 8, 4
KV_HEADS = {"more kv heads than ranks": 8, "as many": 4, "fewer, repeated": 2, "one for all": 1}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _axis() -> Axis:
    assert dist.group.WORLD is not None
    return Axis.from_group(dist.group.WORLD, "cp")


def _pairs() -> Axis:
    """Ranks 0 and 1, ranks 2 and 3."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return Axis.from_group(groups[dist.get_rank() // 2], "pairs")


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over [B, S, H, d], kv heads shared."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _ulysses(axis: Axis | None) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = sequence_to_heads(q.sin(), k, v, axis=axis)
        return heads_to_sequence(_whole(q, k, v), axis=axis).cos()

    return attend


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _whole(q.sin(), k, v).cos()


def _inputs(kv_heads: int) -> list[Tensor]:
    return [_random(BATCH, SEQ_LEN, n, SIZE, seed=n + i) for i, n in enumerate((HEADS, kv_heads, kv_heads))]


def _with_gradients(attend: Attend, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    q, k, v = (x.clone().requires_grad_() for x in inputs)
    out = attend(q, k, v)
    return [out, *torch.autograd.grad(out, (q, k, v), gradient)]


def _compare(attend: Attend, kv_heads: int, axis: Axis, what: str) -> None:
    """Chunks of the whole result against the result of chunks."""
    inputs, gradient = _inputs(kv_heads), _random(BATCH, SEQ_LEN, HEADS, SIZE, seed=9)
    expected = [slice_sequence(x, axis=axis) for x in _with_gradients(_plain, inputs, gradient)]
    chunks = [slice_sequence(x, axis=axis) for x in inputs]
    found = _with_gradients(attend, chunks, slice_sequence(gradient, axis=axis))
    for name, ours, theirs in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        assert_same(ours, theirs, f"{what}: {name}")


def _check_every_form() -> None:
    axis = _axis()
    for case, kv_heads in KV_HEADS.items():
        _compare(_ulysses(axis), kv_heads, axis, f"{case}, explicit axis")
        with context_parallel(axis):
            _compare(_ulysses(None), kv_heads, axis, f"{case}, bound axis")
    compiled: Attend = torch.compile(_ulysses(axis), fullgraph=True, backend="aot_eager")
    _compare(compiled, 8, axis, "compiled")


def test_ulysses_is_attention_over_the_whole_sequence() -> None:
    run_on_ranks(WORLD, _check_every_form)


def _check_binding() -> None:
    """Whatever binds while it runs counts, compiled code included; leaving restores what was bound before."""
    world, pairs = _axis(), _pairs()
    compiled: Attend = torch.compile(_ulysses(None), fullgraph=True, backend="aot_eager")
    with context_parallel(world):
        _compare(compiled, 2, world, "the outer axis")
        with context_parallel(pairs):
            _compare(compiled, 2, pairs, "the inner axis")
        _compare(compiled, 2, world, "the outer axis again")
    with pytest.raises(ValueError, match="no context-parallel axis"):
        heads_to_sequence(torch.ones(1, 4, 2, 2))

    def again(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = checkpoint(_ulysses(None), q, k, v, use_reentrant=False)
        return out

    with context_parallel(world):
        _compare(again, 2, world, "run again in backward")
        chunk = slice_sequence(_random(1, SEQ_LEN, HEADS, SIZE, seed=0)).requires_grad_()
        (whole,) = sequence_to_heads(chunk)
    whole.sum().backward()
    assert chunk.grad is not None, "backward holds its group, so it needs no binding"
    assert torch.equal(chunk.grad, torch.ones_like(chunk))


def test_the_bound_axis_is_the_innermost_also_in_compiled_code() -> None:
    run_on_ranks(WORLD, _check_binding)


def _check_slicing() -> None:
    axis = _axis()
    tokens = torch.arange(2 * SEQ_LEN).view(2, SEQ_LEN)
    own = slice_sequence(tokens, axis=axis)
    assert own[0].tolist() == [3 * axis.rank, 3 * axis.rank + 1, 3 * axis.rank + 2]
    assert torch.equal(gather_sequence_outputs(own, axis=axis), tokens)
    assert torch.equal(slice_sequence(tokens.t(), dim=0, axis=axis), own.t())

    x = _random(5, 3, seed=axis.rank).requires_grad_()
    gathered = gather_sequence_outputs(x, dim=-1, axis=axis)
    assert torch.equal(gathered, torch.cat([_random(5, 3, seed=rank) for rank in range(WORLD)], dim=-1))
    weights = [_random(5, 3 * WORLD, seed=10 + rank) for rank in range(WORLD)]
    (gathered * weights[axis.rank]).sum().backward()
    assert_same(
        x.grad, slice_sequence(sum(weights, torch.zeros(())), dim=1, axis=axis), "gradient of all ranks' losses"
    )


def test_chunks_are_contiguous_and_gathering_sums_what_all_ranks_do_with_them() -> None:
    run_on_ranks(WORLD, _check_slicing)


REFUSED: dict[str, tuple[Callable[[Axis], object], str]] = {
    "an uneven sequence": (lambda axis: slice_sequence(torch.ones(1, 10), axis=axis), "10 cannot be cut evenly for 4"),
    "query heads": (lambda axis: sequence_to_heads(torch.ones(1, 2, 6, 4), axis=axis), "6 query heads cannot be cut"),
    "kv heads": (
        lambda axis: sequence_to_heads(torch.ones(1, 2, 12, 4), torch.ones(1, 2, 3, 4), axis=axis),
        "3 kv heads cannot be shared by 4 ranks",
    ),
    "no axis": (lambda _: slice_sequence(torch.ones(1, 12)), "no context-parallel axis: give axis="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shared_out_is_refused_before_anything_is_sent(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call(Axis("cp", "no such group", size=4, rank=0))


# ---- the example of the documentation ----


def _example() -> dict[str, Any]:
    page = Path(__file__).parents[2] / "docs" / "sequences.md"
    source = next(block for block in page.read_text(encoding="utf-8").split("```") if "hf_ulysses.py" in block)
    names: dict[str, Any] = {}
    exec(compile(source.removeprefix("python\n"), "hf_ulysses.py", "exec"), names)
    return names


def _check_example() -> None:
    """Same seed on all ranks, so the same weights; gradients whole, against the model as it comes."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "experts_implementation": "eager",
    }
    example = _example()
    tokens, labels = torch.randint(64, (2, 2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    whole = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))
    expected = F.cross_entropy(whole(input_ids=tokens, use_cache=False).logits.flatten(0, 1), labels.flatten())
    expected.backward()
    torch.manual_seed(0)
    model = example["build"](Qwen3MoeConfig(**sizes))
    loss = example["backward"](model, tokens, labels)
    dist.all_reduce(loss)
    assert_same(loss, expected, "loss")
    for (name, param), reference in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert_same(param.grad.full_tensor(), reference.grad, name)


def test_example_of_the_documentation_is_the_whole_model() -> None:
    run_on_ranks(2, _check_example)
