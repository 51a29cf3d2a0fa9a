"""Perplexity of weights that need not fit into memory: one layer at a time, routed experts one by one.

In float32 on plain torch operations, so that two sets of weights differ by the weights alone.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tapwater import ops
from tapwater.checkpoint.names import layout, meta_model
from tapwater.checkpoint.weights import Progress, TensorSource, assign, read_float
from tapwater.config import ModelConfig
from tapwater.model import Sequences
from tapwater.model.gate import Routing
from tapwater.model.moe import Dispatcher, Experts
from tapwater.model.rope import rotation
from tapwater.model.transformer import Block

LOGIT_ROWS = 128  # at a time: a row is a vocabulary wide


class _Weights:
    """Tensors in float32 by the names of Transformer's state dict, of stacked experts number `index`; read when asked
    for."""

    def __init__(self, config: ModelConfig, source: TensorSource) -> None:
        self._hf_names = {entry.name: entry.hf_names for entry in layout(meta_model(config))}
        self._source = source

    def __call__(self, name: str, index: int = 0) -> Tensor:
        return read_float(self._source, self._hf_names[name][index]).float()


@torch.inference_mode()
def perplexity(
    config: ModelConfig, source: TensorSource, windows: Sequence[Tensor], progress: Progress | None = None
) -> float:
    """exp of the mean loss over all tokens of `windows` but the first of each; `progress` counts layers."""
    weights = _Weights(config, source)
    sequences = Sequences(tuple(len(window) for window in windows))
    turned = rotation(config, sequences.positions())
    x_TD = weights("embed_tokens.weight")[torch.cat(list(windows))]
    for layer in range(config.num_hidden_layers):
        x_TD, _ = _block(config, weights, layer)(x_TD, turned, sequences, layer, None)
        if progress is not None:
            progress(layer + 1, config.num_hidden_layers)
    hidden_TD = ops.rms_norm(x_TD, weights("norm.weight"), config.rms_norm_eps)
    head_WD = weights("embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
    losses = [
        total_loss(hidden_nD, window, lambda rows_RD: F.linear(rows_RD, head_WD))
        for hidden_nD, window in zip(hidden_TD.split(sequences.lengths), windows, strict=True)
    ]
    return math.exp(sum(losses) / sum(length - 1 for length in sequences.lengths))


def total_loss(hidden_nD: Tensor, window_n: Tensor, logits: Callable[[Tensor], Tensor]) -> float:
    """The summed loss of predicting each token of a window but its first."""
    loss = 0.0
    for rows_RD, targets_R in zip(hidden_nD[:-1].split(LOGIT_ROWS), window_n[1:].split(LOGIT_ROWS), strict=True):
        loss += float(F.cross_entropy(logits(rows_RD), targets_R, reduction="sum"))
    return loss


def _block(config: ModelConfig, weights: _Weights, layer: int) -> Block:
    """One layer; its routed experts stay without memory and are read as tokens reach them."""
    prefix = f"layers.{layer}."
    with torch.device("meta"):
        block = Block(config, config.is_moe_layer(layer), _read_experts(weights, f"{prefix}mlp.experts."))
    names = [name for name, _ in (*block.named_parameters(), *block.named_buffers())]
    for name in names:
        if not name.startswith("mlp.experts."):
            assign(block, name, weights(prefix + name))
    return block.requires_grad_(False)


def _read_experts(weights: _Weights, prefix: str) -> Dispatcher:
    def compute(x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        for expert in routing.expert_ids_TK.unique().tolist():
            rows_R, places_R = (routing.expert_ids_TK == expert).nonzero(as_tuple=True)
            matrices = (weights(prefix + name, expert) for name in ("gate_proj", "up_proj", "down_proj"))
            out_RD = ops.swiglu(x_TD[rows_R], *matrices)
            y_TD.index_add_(0, rows_R, out_RD * routing.weights_TK[rows_R, places_R, None])
        return y_TD

    def dispatch(experts: Experts, x_TD: Tensor, routing: Routing, kept_TK: Tensor | None) -> Callable[[], Tensor]:
        return lambda: compute(x_TD, routing)

    return dispatch
