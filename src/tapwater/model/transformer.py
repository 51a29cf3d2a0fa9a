"""The one model definition: it trains, scores and serves every architecture of the family."""

from dataclasses import dataclass
from typing import Any

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
from tapwater.model.recompute import Recomputation, run_again
from tapwater.model.rope import Rotation, rotation


@dataclass(frozen=True)
class Output:
    """`hidden_TD` after the final norm; `balance` only when it was asked for and the model has experts."""

    hidden_TD: Tensor
    balance: BalanceLosses | None


@dataclass(frozen=True)
class Prediction:
    """Next-token logits of R rows in float32; each row's likeliest token, the lowest of equals, and whether all of its
    logits are finite numbers. Of a row that is not, the token means nothing."""

    logits_RW: Tensor
    likeliest: list[int]
    is_finite: list[bool]


@dataclass(frozen=True)
class Ahead:
    """One depth of multi-token prediction: `rows` are the first tokens of each sequence that reaches so far.

    At depth k the logits of row i predict token i + k + 1 of its sequence; the last row has no such token.
    """

    rows: Sequences
    output: Output


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
    """A causal language model over a flat list of tokens; its weights are not set until `random` or a checkpoint does.

    Parameter names are those of Hugging Face checkpoints without the leading `model.`, except that routed experts are
    stacked (see checkpoint/names.py).
    """

    def __init__(self, config: ModelConfig, dispatch: Dispatcher = local_dispatch) -> None:
        super().__init__()
        self.config = config
        self.recomputation: Recomputation = "none"
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
        for parameter in model.parameters():  # buffers, the routing biases, stay float32
            parameter.data = parameter.data.to(dtype)
        return model

    def recompute(self, recomputation: Recomputation) -> None:
        """Choose what a backward pass computes again: `selective` is MLA's keys and values (norms and SwiGLU's product
        always are), `full` everything but the layers' inputs. No result changes."""
        self.recomputation = recomputation
        for module in self.modules():
            if isinstance(module, LatentAttention):
                module.expands_again = recomputation == "selective"

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, context: AttentionContext, balance: Balance | None = None
    ) -> Output:
        """Hidden states of all T tokens; `context` says which belong together and where the past is.

        Raises ValueError unless lengths, tokens and positions agree, or when `balance` is asked for over a cache.
        """
        _check_lengths(tokens_T, positions_T, context)
        if balance is not None and not isinstance(context, Sequences):
            raise ValueError("balance losses are defined over whole sequences, not over a cache")
        turned = rotation(self.config, positions_T)
        x_TD = self.embed_tokens(tokens_T)
        losses = []
        for layer, block in enumerate(self.layers):
            x_TD, loss = self.run(block, x_TD, turned, context, layer, balance)
            if loss is not None:
                losses.append(loss)
        return Output(self.norm(x_TD), sum_losses(losses) if losses else None)

    def run(self, block: nn.Module, *given: Any) -> Any:
        """block(*given) as `recompute` chose; for whoever goes through the layers."""
        if self.recomputation == "full" and torch.is_grad_enabled():
            return run_again(block, *given)
        return block(*given)

    def new_pages(self, num_pages: int, page_size: int) -> Tensor:
        """An empty cache in the dtype of the weights: [L, P, S, X]."""
        shape = (self.config.num_hidden_layers, num_pages, page_size, self.config.kv_elements_per_token_per_layer)
        weight = self.embed_tokens.weight
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Next-token logits [R, vocab_size] in float32, for as many rows as are wanted."""
        return ops.linear(hidden_RD, self.lm_head.weight).float()

    def predict(self, hidden_RD: Tensor) -> Prediction:
        """The logits, and what greedy choice needs of them: the specification of the native model's single pass."""
        logits_RW = self.logits(hidden_RD)
        return Prediction(logits_RW, logits_RW.argmax(dim=1).tolist(), logits_RW.isfinite().all(dim=1).tolist())

    def predict_ahead(
        self, hidden_TD: Tensor, tokens_T: Tensor, sequences: Sequences, balance: Balance | None = None
    ) -> list[Ahead]:
        """Multi-token prediction from the main Output's `hidden_TD`, one Ahead per depth k = 1, 2, ..

        At depth k a sequence of n tokens has n - k rows, since the others have no token to look ahead to; one of k
        tokens or fewer has none. Depths that no sequence reaches are left out.
        """
        _check_lengths(tokens_T, hidden_TD, sequences)
        lengths = sequences.lengths
        found: list[Ahead] = []
        for depth, module in enumerate(self.mtp, start=1):
            if max(lengths) <= depth:
                break
            rows = Sequences(tuple(length - depth for length in lengths if length > depth))
            previous = [length - depth + 1 for length in lengths if length >= depth]
            previous_TD = torch.cat([part[:-1] for part in hidden_TD.split(previous)])
            embedded_TD = self.embed_tokens(torch.cat([part[depth:] for part in tokens_T.split(lengths)]))
            rows_balance = balance
            if balance is not None:
                rows_balance = balance.ahead(lengths, depth)
            turned = rotation(self.config, rows.positions())
            hidden_TD, loss = self.run(module, embedded_TD, previous_TD, turned, rows, rows_balance)
            found.append(Ahead(rows, Output(hidden_TD, sum_losses([loss]) if loss else None)))
        return found


def _check_lengths(tokens_T: Tensor, positions_T: Tensor, context: AttentionContext) -> None:
    total = sum(context.query_lengths)
    if not total == tokens_T.shape[0] == positions_T.shape[0]:
        raise ValueError(
            f"{tokens_T.shape[0]} tokens, {positions_T.shape[0]} positions and lengths that add up to {total} disagree"
        )
