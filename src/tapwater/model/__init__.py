"""The model family, single device, differentiable throughout."""

from tapwater.model.balance import Balance, BalanceLosses, update_bias
from tapwater.model.context import AttentionContext, CacheView, Sequences
from tapwater.model.packed import PackedTransformer, PackedWeights
from tapwater.model.transformer import Ahead, Output, Prediction, Transformer

__all__ = [
    "Ahead",
    "AttentionContext",
    "Balance",
    "BalanceLosses",
    "CacheView",
    "Output",
    "PackedTransformer",
    "PackedWeights",
    "Prediction",
    "Sequences",
    "Transformer",
    "update_bias",
]
