"""What one measurement is made of: the model's sizes, the training settings, and the cell that joins them.

No torch here: ``epbench plan`` reads thousands of these in milliseconds. Field names of the model are those
of the published ``config.json`` (Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder-480B-A35B).
"""

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from epbench.layout import Layout

__all__ = ["PRESETS", "Cell", "Frozen", "MeasureSpec", "Mode", "ModelSpec", "TrainSpec", "digest", "fits"]

Mode = Literal["eager", "compiled"]


class Frozen(BaseModel):
    """Base of all specifications and records: immutable, and a key nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSpec(Frozen):
    """Sizes of a Qwen3-MoE decoder. Defaults are the ``tiny`` preset, legal for every axis at 4 ranks."""

    preset: str = "tiny"
    num_layers: int = Field(2, gt=0, le=10_000)
    total_layers: int = Field(2, gt=0, description="layers of the published model: '4 of 48 layers'")
    hidden_size: int = Field(64, gt=0)
    intermediate_size: int = Field(128, gt=0, description="width of dense layers")
    moe_intermediate_size: int = Field(32, gt=0, description="width of one expert")
    num_attention_heads: int = Field(8, gt=0)
    num_key_value_heads: int = Field(4, gt=0)
    head_dim: int = Field(16, gt=0)
    num_experts: int = Field(8, gt=0)
    num_experts_per_tok: int = Field(2, gt=0)
    norm_topk_prob: bool = True
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    routed_scaling_factor: float = Field(1.0, gt=0, description="times the scores, after they are normalised")
    n_group: int = Field(1, gt=0, description="groups of experts that a token first chooses among")
    topk_group: int = Field(1, gt=0, description="groups a token may choose experts from")
    router_bias_update_rate: float = Field(0.0, ge=0, description="correction bias: its step; 0 = no bias")
    n_shared_experts: int = Field(0, ge=0, description="experts that every token visits")
    score_before_experts: bool = Field(False, description="scores multiply the experts' inputs, not outputs")
    decoder_sparse_step: int = Field(1, gt=0)
    mlp_only_layers: tuple[int, ...] = ()
    vocab_size: int = Field(512, gt=0)
    rope_theta: float = Field(1e6, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    initializer_range: float = Field(0.02, gt=0)
    expert_initializer_scale: float = Field(1.0, gt=0, description="times initializer_range; verification uses 8")
    tie_word_embeddings: bool = False
    checkpoint: str | None = None

    def is_moe_layer(self, index: int) -> bool:
        """Whether layer ``index`` has experts (the published rule, see facts 1)."""
        return index not in self.mlp_only_layers and (index + 1) % self.decoder_sparse_step == 0

    @property
    def num_moe_layers(self) -> int:
        """How many of the layers have experts."""
        step = self.decoder_sparse_step
        kept_dense = {i for i in self.mlp_only_layers if 0 <= i < self.num_layers and (i + 1) % step == 0}
        return self.num_layers // step - len(kept_dense)

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert: gate, up and down projection."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    def _parameters(self, routed_experts: int) -> int:
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * self.head_dim * heads
        norms = 2 * self.hidden_size + 2 * self.head_dim
        experts = routed_experts + self.n_shared_experts
        moe = self.hidden_size * self.num_experts + experts * self.expert_parameters
        dense = 3 * self.hidden_size * self.intermediate_size
        blocks = self.num_layers * (attention + norms)
        blocks += self.num_moe_layers * moe + (self.num_layers - self.num_moe_layers) * dense
        vocabularies = 1 if self.tie_word_embeddings else 2
        return blocks + vocabularies * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def total_parameters(self) -> int:
        """All parameters, embedding and lm_head included."""
        return self._parameters(self.num_experts)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through, embedding and lm_head included."""
        return self._parameters(self.num_experts_per_tok)


def _published(preset: str, **sizes: Any) -> ModelSpec:
    common = {
        "head_dim": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
    }
    return ModelSpec(preset=preset, total_layers=sizes["num_layers"], **(common | sizes))


PRESETS: dict[str, ModelSpec] = {
    "tiny": ModelSpec(),
    "qwen3-30b-a3b": _published(
        "qwen3-30b-a3b", num_layers=48, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
        num_attention_heads=32, num_key_value_heads=4, num_experts=128,
    ),
    "qwen3-235b-a22b": _published(
        "qwen3-235b-a22b", num_layers=94, hidden_size=4096, intermediate_size=12288,
        moe_intermediate_size=1536, num_attention_heads=64, num_key_value_heads=4, num_experts=128,
    ),
    "qwen3-coder-480b-a35b": _published(
        "qwen3-coder-480b-a35b", num_layers=62, hidden_size=6144, intermediate_size=8192,
        moe_intermediate_size=2560, num_attention_heads=96, num_key_value_heads=8, num_experts=160,
        rope_theta=1e7,
    ),
}  # fmt: skip


class TrainSpec(Frozen):
    """How one optimizer step is made; shared by all layouts of a scenario so that their work is equal.

    It can hold values that this version does not build: a scenario keeps such cells as ``skipped`` rows, so
    they need a name and an id. ``scenario_schema.not_yet`` says which; no launch ever gets one.
    """

    stack: str = "qwen3_moe"
    seq_len: int = Field(128, gt=0)
    global_batch_size: int = Field(4, gt=0, description="sequences a step over all ranks")
    micro_batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    compute_dtype: Literal["fp32", "bf16", "fp8"] = "fp32"
    master_dtype: Literal["fp32", "bf16", "fp8"] = "fp32"
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    optimizer: Literal["adamw"] = "adamw"
    optimizer_fused: bool = True
    lr: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 = no clipping")
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    reshard_after_forward: bool = True
    dispatcher: Literal["all_to_all", "dedup", "symm_mem", "deepep"] = "all_to_all"
    overlap: str = Field("none", pattern=r"^(none|chunks:[1-9][0-9]{0,3})$")
    data: str = Field("random", min_length=1, max_length=4096, description="random, or a token file's path")
    packing: Literal["none", "lognormal"] = "none"
    seed: int = Field(0, ge=0)


class MeasureSpec(Frozen):
    """How a cell is measured."""

    launches: int = Field(5, ge=1, description="see docs/noise.md; fewer than 3: no interval, never ranked")
    min_steps: int = Field(30, ge=1)
    max_steps: int = Field(200, ge=1)
    max_warmup_steps: int = Field(60, ge=1)
    trace_steps: int = Field(3, ge=1)
    progress_timeout_s: float = Field(120, gt=0)
    launch_timeout_s: float = Field(300, gt=0)
    verify: Literal["full", "loss"] = "full"
    verify_tolerance: float = Field(1e-5, gt=0, description="fp32, relative to the largest entry")
    telemetry: bool = True
    record_routing: bool = Field(False, description="write the first step's expert ids, to replay them")
    canary: bool = Field(True, description="the same fixed work before and after a run")
    comm: bool | Literal["auto"] = Field("auto", description="collectives alone, once a run; auto: on cuda")


class Cell(Frozen):
    """One layout x model x training settings x mode x routing: what is verified and timed."""

    layout: Layout
    mode: Mode = "eager"
    routing: str = "natural"
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    expect: Literal["ok", "oom", "any"] = "ok"

    @property
    def world_size(self) -> int:
        """Ranks that the layout spans."""
        return self.layout.world_size

    @property
    def id(self) -> str:
        """``<slug>-<mode>-<routing>-<6 hex>``, of characters ``[a-z0-9._-]`` only."""
        kind, _, value = self.routing.partition(":")
        value = digest(value)[:4] if kind == "replay" else value
        routing = f"{kind}-{value}" if value else kind
        return f"{self.layout.slug}-{self.mode}-{routing}-{self.digest[:6]}"

    @property
    def digest(self) -> str:
        """Digest of everything that is measured; ``expect`` judges a result and is no part of it."""
        return digest(self.model_dump(mode="json", exclude={"expect"}))

    @property
    def micro_batch_size(self) -> int:
        """Sequences per data rank per micro-batch; ``auto`` is one micro-batch a step."""
        per_rank = self.train.global_batch_size // self.layout.data_ranks
        return per_rank if self.train.micro_batch_size == "auto" else self.train.micro_batch_size

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that a data rank accumulates gradients over in one step."""
        return self.train.global_batch_size // (self.layout.data_ranks * self.micro_batch_size)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all ranks."""
        return self.train.global_batch_size * self.train.seq_len


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fits(cell_id: str, globs: str | None) -> bool:
    """Whether ``cell_id`` is wanted by ``globs``, one or several with commas between; None wants every cell."""
    return globs is None or any(fnmatchcase(cell_id, glob.strip()) for glob in globs.split(","))
