"""The Qwen3-MoE decoder: pre-norm blocks, each with attention and either experts or a dense SwiGLU layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epbench.cells import ModelSpec
from epbench.model.attention import Attention, Sequences
from epbench.model.layers import Embedding, Move, RMSNorm, identity, local, rope_tables
from epbench.model.mlp import DenseMLP
from epbench.model.moe import Choice, MoE, Routed

__all__ = ["Block", "Decoder", "Head", "token_loss"]

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """One decoder layer. A block with experts runs in three pieces, see :mod:`epbench.model.moe`."""

    def __init__(self, model: ModelSpec, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.attention = Attention(model)
        self.mlp_norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.moe = MoE(model) if model.is_moe_layer(index) else None
        self.mlp = DenseMLP(model.hidden_size, model.intermediate_size) if self.moe is None else None

    def attend(self, x_BSD: Tensor, sequences: Sequences) -> Tensor:
        """The attention half with its residual."""
        attended: Tensor = self.attention(self.attention_norm(x_BSD), sequences)
        return x_BSD + attended

    def dense(self, x_BSD: Tensor, sequences: Sequences) -> Tensor:
        """A whole block without experts."""
        assert self.mlp is not None, "a block with experts has no dense layer"
        h = self.attend(x_BSD, sequences)
        out: Tensor = self.mlp(self.mlp_norm(h))
        return h + out

    def route(self, x_BSD: Tensor, sequences: Sequences, choice: Choice | None = None) -> tuple[Tensor, Routed]:
        """Up to the experts: the residual and the routed rows; ``choice`` repeats an earlier routing."""
        assert self.moe is not None, "a dense block routes nothing"
        h = self.attend(x_BSD, sequences)
        return h, self.moe.route(self.mlp_norm(h), choice)

    def merge(self, h_BSD: Tensor, y_RD: Tensor, routed: Routed) -> Tensor:
        """From the experts on: combine and residual."""
        assert self.moe is not None, "a dense block merges nothing"
        return h_BSD + self.moe.merge(y_RD, routed, h_BSD.shape[0])

    def repeatable(
        self, x_BSD: Tensor, sequences: Sequences, choice: Choice | None = None
    ) -> tuple[Tensor, Choice | None]:
        """The block's output, and the choice that lets the same experts be visited again (None without any)."""
        if self.moe is None:
            return self.dense(x_BSD, sequences), None
        h, routed = self.route(x_BSD, sequences, choice)
        return self.merge(h, self.moe.experts(routed.rows, routed.offsets), routed), routed.choice

    def forward(self, x_BSD: Tensor, sequences: Sequences) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        out, choice = self.repeatable(x_BSD, sequences)
        self.record(choice)
        return out

    def record(self, choice: Choice | None) -> None:
        """Lets the router keep what it chose, for whoever asks after the step."""
        if self.moe is not None and choice is not None:
            self.moe.router.record(choice.ids)


def token_loss(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, scale: Tensor) -> Tensor:
    """``scale`` times the summed cross-entropy of tokens whose label is not -100; the plain form, all logits."""
    logits = F.linear(x_TD, weight_VD).float()
    return scale * F.cross_entropy(logits, labels_T, ignore_index=-100, reduction="sum")


class Head(nn.Module):
    """Final norm, lm_head ``weight`` [V, D] and the loss; ``loss`` and ``enter`` are the parallel layer's."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.weight = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))
        self.loss: Loss = token_loss
        self.enter: Move = identity

    def forward(self, x_BSD: Tensor, labels_BS: Tensor, scale: Tensor) -> Tensor:
        """Scaled loss sum over this rank's tokens, fp32 scalar."""
        x_TD = self.enter(self.norm(x_BSD)).flatten(0, 1)
        return self.loss(x_TD, local(self.weight), labels_BS.flatten(), scale)


class Decoder(nn.Module):
    """The whole model, from token ids to the loss."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.spec = model
        self.embed_tokens = Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleList(Block(model, index) for index in range(model.num_layers))
        self.head = Head(model)
        self.tied = model.tie_word_embeddings
        if self.tied:
            self.tie()

    def tie(self) -> None:
        """Makes the lm_head's weight the embedding's; called again by whoever replaces the latter."""
        self.head.weight = self.embed_tokens.weight

    def rope(self, seq_len: int, device: torch.device) -> Sequences:
        """cos and sin for whole sequences of ``seq_len``; made once, handed to every forward."""
        return Sequences(*rope_tables(seq_len, self.spec.head_dim, self.spec.rope_theta, device))

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor, scale: Tensor, sequences: Sequences) -> Tensor:
        """``scale`` x summed loss over this rank's part of the tokens; labels of -100 are not counted."""
        x = self.embed_tokens(tokens_BS)
        for block in self.layers:
            x = block(x, sequences)
        loss: Tensor = self.head(x, labels_BS, scale)
        return loss
