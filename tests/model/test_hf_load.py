"""What transformers saves is what our decoder computes with; a directory that does not fit is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from epbench.cells import ModelSpec
from epbench.errors import CheckpointError
from epbench.hf_config import INDEX, model_spec
from epbench.model.decoder import Decoder
from epbench.model.hf_names import our_name
from epbench.model.hf_weights import load_hf_weights
from tests.checkpoints import SMALL, published_model, published_shapes, read_all, write_checkpoint
from tests.model.compare import assert_same

SEQ_LEN = 24
VARIANTS: dict[str, dict[str, Any]] = {
    "a dense first layer": {},
    "all layers with experts, tied embeddings": {"mlp_only_layers": (), "tie_word_embeddings": True},
}


def _published_gradients(model: Any) -> dict[str, Tensor]:
    """Gradients of transformers' parameters under the names of files; experts are fused in memory."""
    gradients = {}
    for name, param in model.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix(".gate_up_proj")
            for expert, fused in enumerate(param.grad):
                gate, up = fused.chunk(2)
                gradients[f"{prefix}.{expert}.gate_proj.weight"] = gate
                gradients[f"{prefix}.{expert}.up_proj.weight"] = up
        elif name.endswith("experts.down_proj"):
            prefix = name.removesuffix(".down_proj")
            gradients |= {f"{prefix}.{expert}.down_proj.weight": grad for expert, grad in enumerate(param.grad)}
        else:
            gradients[name] = param.grad
    return gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_of_transformers_gives_its_loss_and_every_gradient(variant: str, tmp_path: Path) -> None:
    spec = SMALL.model_copy(update=VARIANTS[variant])
    theirs = published_model(tmp_path, spec)
    ours = Decoder(model_spec(tmp_path))
    load_hf_weights(ours, tmp_path)

    tokens = torch.randint(spec.vocab_size, (2, SEQ_LEN + 1), generator=torch.Generator().manual_seed(2))
    tokens, labels = tokens[:, :-1], tokens[:, 1:].contiguous()
    logits = theirs(input_ids=tokens, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    expected.backward()
    loss = ours(tokens, labels, torch.tensor(1 / labels.numel()), ours.rope(SEQ_LEN, tokens.device))
    loss.backward()

    assert_same(loss, expected, "loss")
    gradients = {name: param.grad for name, param in ours.named_parameters()}
    published = _published_gradients(theirs)
    assert published.keys() == published_shapes(spec).keys()
    for name, gradient in published.items():
        whole, expert = our_name(name)
        mine = gradients[whole]
        assert mine is not None, name
        assert_same(mine if expert is None else mine[expert], gradient, name)


def _weights(spec: ModelSpec = SMALL, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in published_shapes(spec).items()}


@pytest.mark.parametrize(("stored", "held"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_weights_are_cast_to_the_dtype_of_the_parameter(stored: torch.dtype, held: torch.dtype, tmp_path: Path) -> None:
    weights = _weights(dtype=stored)
    write_checkpoint(tmp_path, SMALL, weights)
    model = Decoder(SMALL).to(held)
    load_hf_weights(model, tmp_path)
    assert torch.equal(model.head.weight, weights["lm_head.weight"].to(held))
    down = "model.layers.1.mlp.experts.10.down_proj.weight"
    assert torch.equal(model.get_parameter("layers.1.moe.experts.w2")[10], weights[down].to(held))


def test_fewer_layers_than_the_file_has_are_loaded_and_more_are_not(tmp_path: Path) -> None:
    deep = SMALL.model_copy(update={"num_layers": 3})
    weights = _weights(deep)
    write_checkpoint(tmp_path, deep, weights)
    shallow = Decoder(SMALL)
    load_hf_weights(shallow, tmp_path)
    assert torch.equal(
        shallow.get_parameter("layers.1.mlp_norm.weight"), weights["model.layers.1.post_attention_layernorm.weight"]
    )
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.3\..* and \d+ more"):
        load_hf_weights(Decoder(SMALL.model_copy(update={"num_layers": 4})), tmp_path)


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path: Path) -> None:
    tied = SMALL.model_copy(update={"tie_word_embeddings": True})
    weights = _weights(tied)
    same = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    load_hf_weights(Decoder(tied), write_checkpoint(tmp_path / "same", tied, same))
    other = weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 2}
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_hf_weights(Decoder(tied), write_checkpoint(tmp_path / "other", tied, other))


ROUTER, EXPERT = "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.11.up_proj.weight"
MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a missing tensor": (lambda it: it.pop(ROUTER), f"missing {ROUTER}"),
    "a missing expert": (lambda it: it.pop(EXPERT), f"missing {EXPERT}"),
    "an expert too many": (
        lambda it: it.update({EXPERT.replace("11", "12"): torch.zeros(16, 32)}),
        f"no place for {EXPERT.replace('11', '12')}",
    ),
    "a layer that no number counts": (
        lambda it: it.update({ROUTER.replace("1", "9" * 5000): torch.zeros(12, 32)}),
        "no place for 'model.layers.999",
    ),
    "a name that would write on the terminal": (
        lambda it: it.update({"\x1b[2J": torch.zeros(2)}),
        r"no place for '\x1b[2J'",
    ),
    "a tensor nobody knows": (lambda it: it.update(rotary=torch.zeros(2)), "no place for rotary"),
    "experts in a dense layer": (
        lambda it: it.update({ROUTER.replace("1", "0", 1): torch.zeros(12, 32)}),
        "no place for model.layers.0.mlp.gate.weight",
    ),
    "a transposed tensor": (
        lambda it: it.update({EXPERT: it[EXPERT].T.contiguous()}),
        f"{EXPERT} has shape [32, 16], the model needs [16, 32]",
    ),
    "quantised weights": (
        lambda it: it.update({EXPERT: it[EXPERT].to(torch.int8)}),
        f"{EXPERT} is I8, and only F32, BF16, F16 are read",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_tensor_that_does_not_fit_is_an_error_that_names_it(misfit: str, tmp_path: Path) -> None:
    change, words = MISFITS[misfit]
    weights = _weights()
    change(weights)
    write_checkpoint(tmp_path, SMALL, weights)
    with pytest.raises(CheckpointError) as error:
        load_hf_weights(Decoder(SMALL), tmp_path)
    assert words in str(error.value)


def _move_out(directory: Path) -> None:
    """The first file is whole, and outside of the directory that was named."""
    first = directory / "model-00001-of-00003.safetensors"
    first.rename(directory.parent / "moved.safetensors")
    text = (directory / INDEX).read_text()
    (directory / INDEX).write_text(text.replace(first.name, "../moved.safetensors"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights at all": (lambda it: (it / INDEX).unlink(), "model.safetensors: is missing"),
    "a file fewer": (lambda it: (it / "model-00002-of-00003.safetensors").unlink(), "00002-of-00003.safetensors: is"),
    "a cut file": (
        lambda it: (it / "model-00001-of-00003.safetensors").write_bytes(b"12345"),
        "is no safetensors file",
    ),
    "an index that is no JSON": (lambda it: (it / INDEX).write_text("{"), f"{INDEX}: is not JSON"),
    "an index without files": (lambda it: (it / INDEX).write_text("{}"), "weight_map is missing"),
    "a tensor in two files": (
        lambda it: (it / "model-00003-of-00003.safetensors").write_bytes(
            (it / "model-00001-of-00003.safetensors").read_bytes()
        ),
        "lm_head.weight is in two files",
    ),
    "an index of files elsewhere": (_move_out, "weight_map names '../moved.safetensors', no safetensors file beside"),
    "an index of numbers": (lambda it: (it / INDEX).write_text(json.dumps({"weight_map": {"a": 1}})), "weight_map is"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_directory_is_one_sentence(damage: str, tmp_path: Path) -> None:
    change, words = DAMAGE[damage]
    directory = tmp_path / "checkpoint"
    change(write_checkpoint(directory, SMALL, _weights()))
    with pytest.raises(CheckpointError) as error:
        load_hf_weights(Decoder(SMALL), directory)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    weights = _weights()
    save_file(weights, tmp_path / "model.safetensors")
    load_hf_weights(model := Decoder(SMALL), tmp_path)
    assert torch.equal(model.embed_tokens.weight, read_all(tmp_path)["model.embed_tokens.weight"])
