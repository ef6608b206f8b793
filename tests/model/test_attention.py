"""Packed documents: attention, and the whole model, compute for each what they compute for it alone."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epbench.cells import ModelSpec
from epbench.model.attention import Sequences, causal_attention, packed
from epbench.model.decoder import Decoder
from epbench.model.layers import rope_tables
from tests.model.compare import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch 2.11's inductor

CPU = torch.device("cpu")
SEQ_LEN, HEADS, SIZE = 12, 4, 8
Heads = tuple[Tensor, Tensor, Tensor]
ROWS = {  # per row the lengths of its documents
    "one document": [[12], [12]],
    "other cuts in every row": [[5, 4, 3], [2, 9, 1]],
    "other numbers of documents": [[12], [1, 1, 7, 2, 1]],
    "documents of one and two tokens": [[1, 2] * 4, [2, 1] * 4],
}


def _cu_seqlens(rows: list[list[int]]) -> Tensor:
    """Filled up with SEQ_LEN, and with one document of no token more than any row needs."""
    longest = max(map(len, rows)) + 1
    padded = [torch.tensor([0, *row]).cumsum(0).tolist() + [SEQ_LEN] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int32)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _heads(kv_heads: int) -> Heads:
    q, k, v = (_random(2, SEQ_LEN, n, SIZE, seed=n + i) for i, n in enumerate((HEADS, kv_heads, kv_heads)))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def _with_gradients(out: Tensor, heads: Heads) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(out, heads, _random(*out.shape, seed=9).to(out.device))
    return {"output": out, **{f"gradient of {name}": x for name, x in zip("qkv", gradients, strict=True)}}


def _alone(heads: Heads, rows: list[list[int]]) -> Tensor:
    """Every document as a batch of its own, at positions from 0."""
    outputs = []
    for row, lengths in enumerate(rows):
        pieces = zip(*(x[row : row + 1].split(lengths, dim=1) for x in heads), strict=True)
        wholes = (Sequences(*rope_tables(length, SIZE, 1e6, CPU)) for length in lengths)
        outputs.append(
            torch.cat([causal_attention(q, k, v, of) for (q, k, v), of in zip(pieces, wholes, strict=True)], 1)
        )
    return torch.cat(outputs)


def _packed(rows: list[list[int]]) -> Sequences:
    return packed(Sequences(*rope_tables(SEQ_LEN, SIZE, 1e6, CPU)), _cu_seqlens(rows))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("case", ROWS)
def test_packed_attention_is_that_of_each_document_alone(case: str, kv_heads: int) -> None:
    heads = _heads(kv_heads)
    expected = _with_gradients(_alone(heads, ROWS[case]), heads)
    found = _with_gradients(causal_attention(*heads, _packed(ROWS[case])), heads)
    for name, value in expected.items():
        assert_same(found[name], value, name)


def test_positions_start_anew_in_every_document() -> None:
    cos, _ = rope_tables(SEQ_LEN, SIZE, 1e6, CPU)
    sequences = _packed([[5, 4, 3], [12]])
    positions = [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2], list(range(12))]
    assert torch.equal(sequences.cos, torch.stack([cos[row] for row in positions]))


def _flash(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, *rest: object, window_size: tuple[int, int], **_: object
) -> Tensor:
    """What the kernel is documented to do, one document after the other; takes grouped heads as the kernel does."""
    assert (rest[0] is ends, rest[1:], window_size) == (True, (SEQ_LEN, SEQ_LEN), (-1, 0))
    lengths = ends.diff().tolist()
    assert ends[0] == 0, "a gap before the first document would stay unwritten"
    outputs = []
    for piece in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        if piece[0].shape[0]:
            one, shared, values = (x.transpose(0, 1).unsqueeze(0) for x in piece)
            out = F.scaled_dot_product_attention(one, shared, values, is_causal=True, enable_gqa=True)
            outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("case", ROWS)
def test_rows_laid_end_to_end_for_the_kernel_are_the_same_documents(case: str) -> None:
    """The arithmetic around the CUDA kernel, with the kernel's definition in its place."""
    from epbench.model import attention

    heads, sequences = _heads(2), _packed(ROWS[case])
    assert sequences.cu_seqlens is not None
    masked = attention._sdpa(*heads, mask=attention._block_causal(sequences.cu_seqlens, SEQ_LEN))
    with patch("epbench.model.attention.varlen_attn", _flash):
        found = _with_gradients(attention._varlen(*heads, sequences.cu_seqlens), heads)
    for name, value in _with_gradients(masked, heads).items():
        assert_same(found[name], value, name)


def _model() -> Decoder:
    model = Decoder(ModelSpec(num_key_value_heads=2, mlp_only_layers=(0,)))
    with torch.no_grad():
        for index, param in enumerate(model.parameters()):
            noise = _random(*param.shape, seed=index)
            param.copy_(1 + 0.2 * noise if param.dim() == 1 else 0.1 * noise)
    return model


def test_packed_model_is_the_model_on_each_document_alone() -> None:
    """Loss and every gradient; that the model alone is the published one, its own test says."""
    rows, model = ROWS["other cuts in every row"], _model()
    tokens = torch.randint(512, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    labels, scale = tokens.roll(-1, dims=1), torch.tensor(1 / 24)
    whole = model.rope(SEQ_LEN, CPU)
    loss = model(tokens, labels, scale, packed(whole, _cu_seqlens(rows)))
    found = torch.autograd.grad(loss, list(model.parameters()))

    alone = torch.zeros(())
    for row, lengths in enumerate(rows):
        for ids, targets in zip(tokens[row].split(lengths), labels[row].split(lengths), strict=True):
            alone = alone + model(ids.unsqueeze(0), targets.unsqueeze(0), scale, model.rope(len(ids), CPU))
    expected = torch.autograd.grad(alone, list(model.parameters()))

    assert_same(loss, alone, "loss")
    for (name, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
        assert_same(ours, theirs, name)


def test_lengths_may_change_without_a_recompile() -> None:
    torch._dynamo.reset()
    heads, whole = _heads(2), Sequences(*rope_tables(SEQ_LEN, SIZE, 1e6, CPU))

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        return causal_attention(q, k, v, packed(whole, cu_seqlens))

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in ([[5, 4, 3], [2, 9, 1]], [[12], [4, 4, 4]]):
            cu_seqlens = _cu_seqlens(rows)[:, :5]
            filled = F.pad(cu_seqlens, (0, 5 - cu_seqlens.shape[1]), value=SEQ_LEN)
            assert_same(compiled(*heads, filled), attend(*heads, filled), "compiled attention")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the varlen kernel is CUDA's")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_varlen_kernel_equals_the_mask_on_cuda_without_a_sync(kv_heads: int) -> None:
    """bf16 inputs through the kernel, against the same values in fp32 through the mask."""
    torch._dynamo.reset()
    device = torch.device("cuda")
    wide = [torch.cat([x.detach()] * 16, dim=3).to(device, torch.bfloat16) for x in _heads(kv_heads)]
    halves = wide[0].requires_grad_(), wide[1].requires_grad_(), wide[2].requires_grad_()
    q, k, v = (x.detach().float().requires_grad_() for x in wide)
    whole = Sequences(*rope_tables(SEQ_LEN, 16 * SIZE, 1e6, device))
    attend = torch.compile(causal_attention, fullgraph=True)
    for rows in ROWS.values():
        lengths = _cu_seqlens(rows)
        sequences = packed(whole, F.pad(lengths, (0, 14 - lengths.shape[1]), value=SEQ_LEN).to(device))
        expected = _with_gradients(causal_attention(q, k, v, sequences), (q, k, v))
        attend(*halves, sequences)  # compiles, which may wait for the device
        torch.cuda.set_sync_debug_mode("error")
        try:
            eager, compiled = causal_attention(*halves, sequences), attend(*halves, sequences)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for out in (eager, compiled):
            for name, value in _with_gradients(out.float(), halves).items():
                assert_same(value.float(), expected[name], name, tolerance=2e-2)
