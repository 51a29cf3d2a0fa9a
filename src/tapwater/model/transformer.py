"""The one model definition: it trains, scores and serves every architecture of the family."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tapwater import ops
from tapwater.config import ModelConfig
from tapwater.model.attention import GroupedAttention, LatentAttention
from tapwater.model.balance import Balance, BalanceLosses, sum_losses
from tapwater.model.context import AttentionContext, Sequences
from tapwater.model.init import initialise
from tapwater.model.layers import Embedding, Linear, RMSNorm, SwiGLU
from tapwater.model.moe import Dispatcher, MoE, local_dispatch
from tapwater.model.mtp import MultiTokenPrediction
from tapwater.model.rope import Rotation, rotation


@dataclass(frozen=True)
class Output:
    """`hidden_TD` after the final norm; `balance` only when it was asked for and the model has experts."""

    hidden_TD: Tensor
    balance: BalanceLosses | None


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)). `layer` is the block's index in the cache."""

    def __init__(self, config: ModelConfig, is_moe: bool, dispatch: Dispatcher) -> None:
        super().__init__()
        self.self_attn = LatentAttention(config) if config.is_mla else GroupedAttention(config)
        self.mlp = MoE(config, dispatch) if is_moe else SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_TD: Tensor, rotation: Rotation, context: AttentionContext, layer: int, balance: Balance | None
    ) -> tuple[Tensor, BalanceLosses | None]:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rotation, context, layer)
        normed_TD = self.post_attention_layernorm(x_TD)
        if isinstance(self.mlp, MoE):
            y_TD, losses = self.mlp(normed_TD, context, balance)
        else:
            y_TD, losses = self.mlp(normed_TD), None
        return x_TD + y_TD, losses


class Transformer(nn.Module):
    """A causal language model over a flat list of tokens.

    Parameter names are those of Hugging Face checkpoints without the leading `model.`, except that routed experts are
    stacked (see checkpoint/names.py).
    """

    def __init__(self, config: ModelConfig, dispatch: Dispatcher = local_dispatch) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, config.is_moe_layer(layer), dispatch) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.mtp = nn.ModuleList(
            MultiTokenPrediction(config, Block(config, config.is_moe, dispatch))
            for _ in range(config.num_nextn_predict_layers)
        )

    @classmethod
    def random(cls, config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32) -> "Transformer":
        """A freshly initialised model: same config and seed, same weights."""
        model = cls(config)
        initialise(model, config.initializer_range, torch.Generator().manual_seed(seed))
        return model.to(dtype)

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, context: AttentionContext, balance: Balance | None = None
    ) -> Output:
        """Hidden states of all T tokens; `context` says which belong together and where the past is."""
        turned = rotation(self.config, positions_T)
        x_TD = self.embed_tokens(tokens_T)
        losses = []
        for layer, block in enumerate(self.layers):
            x_TD, loss = block(x_TD, turned, context, layer, balance)
            if loss is not None:
                losses.append(loss)
        return Output(self.norm(x_TD), sum_losses(losses) if losses else None)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Next-token logits [R, vocab_size] in float32, for as many rows as are wanted."""
        return ops.linear(hidden_RD, self.lm_head.weight).float()

    def predict_ahead(
        self,
        hidden_TD: Tensor,
        tokens_T: Tensor,
        positions_T: Tensor,
        context: AttentionContext,
        balance: Balance | None = None,
    ) -> list[Output]:
        """Multi-token prediction: per depth k = 1.., normed hidden states whose logits predict token i + k + 1.

        `hidden_TD` is the main Output's. The last k rows of each sequence have no token to look ahead to: they repeat
        the sequence's last token and must be masked out of the loss.
        """
        lengths = context.lengths if isinstance(context, Sequences) else context.query_lengths
        turned = rotation(self.config, positions_T)
        outputs = []
        for depth, module in enumerate(self.mtp, start=1):
            ahead = [part[torch.arange(part.shape[0]).add(depth).clamp(max=part.shape[0] - 1)]
                     for part in tokens_T.split(list(lengths))]  # fmt: skip
            layer = self.config.num_hidden_layers + depth - 1
            embedded_TD = self.embed_tokens(torch.cat(ahead))
            hidden_TD, normed_TD, loss = module(embedded_TD, hidden_TD, turned, context, layer, balance)
            outputs.append(Output(normed_TD, sum_losses([loss]) if loss else None))
        return outputs


def positions_of(lengths: tuple[int, ...]) -> Tensor:
    """Positions 0.. of consecutive whole sequences, flat."""
    return torch.cat([torch.arange(length) for length in lengths])
