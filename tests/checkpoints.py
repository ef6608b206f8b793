"""Checkpoints for tests: as transformers writes them, and of random bits."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.hf_config import INDEX, config_json, weight_files
from epbench.layout import Layout
from epbench.model.decoder import Decoder
from epbench.model.hf_names import hf_names

__all__ = [
    "SMALL",
    "bits",
    "build_on_rank",
    "filled",
    "published_model",
    "published_shapes",
    "read_all",
    "write_checkpoint",
    "write_random_bits",
]

SMALL = ModelSpec(  # a dense layer, and experts whose order as text is not that of numbers
    num_layers=2,
    total_layers=2,
    mlp_only_layers=(0,),
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=12,
    vocab_size=96,
)


def bits(x: Tensor) -> Tensor:
    """A tensor's bits as integers, so that -0.0 is not 0.0 and a NaN equals itself."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().contiguous().view(kinds[x.dtype.itemsize])


def build_on_rank(layout: Layout, spec: ModelSpec) -> Decoder:
    """The stack's model in a layout on this rank of a world of gloo ranks, with the spec's initial weights."""
    from epbench.stacks.protocol import World
    from epbench.stacks.qwen3_moe import build

    rank = dist.get_rank()
    cell = Cell(layout=layout, model=spec, train=TrainSpec(seq_len=16, global_batch_size=4))
    return build(cell, World(rank, dist.get_world_size(), rank, torch.device("cpu"))).model


def filled(spec: ModelSpec) -> Decoder:
    """A model of normal numbers on one rank; what ``Decoder`` makes is uninitialised memory."""
    model = Decoder(spec)
    for param in model.parameters():
        torch.nn.init.normal_(param)
    return model


def published_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every weight of a model."""
    with torch.device("meta"):
        model = Decoder(spec)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, param in model.named_parameters():
        names = hf_names(name, num_experts=spec.num_experts)
        shapes |= dict.fromkeys(names, tuple(param.shape[1:] if ".experts." in name else param.shape))
    return shapes


def write_checkpoint(directory: Path, spec: ModelSpec, tensors: dict[str, Tensor], *, num_files: int = 3) -> Path:
    """Writes ``tensors`` over several files, in order of text as published ones are."""
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for index in range(num_files):
        file = f"model-{index + 1:05d}-of-{num_files:05d}.safetensors"
        held = names[index * len(names) // num_files : (index + 1) * len(names) // num_files]
        save_file({name: tensors[name] for name in held}, directory / file)
        weight_map |= dict.fromkeys(held, file)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(config_json(spec)))
    return directory


def write_random_bits(directory: Path, spec: ModelSpec) -> Path:
    """A checkpoint whose fp32 weights are random bits: infinities, NaNs with payloads, and in front a -0.0."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in published_shapes(spec).items():
        random = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64).to(torch.int32)
        random.view(-1)[0] = -(2**31)
        tensors[name] = random.view(torch.float32)
    return write_checkpoint(directory, spec, tensors)


def read_all(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    return tensors


def published_model(directory: Path, spec: ModelSpec, *, max_shard_size: str = "60KB") -> Any:
    """``Qwen3MoeForCausalLM`` with random weights, experts 8 times larger than published, saved by transformers."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    generator = torch.Generator().manual_seed(1)
    config = Qwen3MoeConfig.from_dict(config_json(spec))
    config._attn_implementation = config._experts_implementation = "eager"
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for name, param in model.named_parameters():
            noise = torch.randn(param.shape, generator=generator)
            scale = spec.initializer_range * (8 if ".experts." in name else 1)
            param.copy_(1 + 0.2 * noise if param.dim() == 1 else scale * noise)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model
