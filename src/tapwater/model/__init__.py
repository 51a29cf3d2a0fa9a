"""The model family, single device, differentiable throughout."""

from tapwater.model.balance import Balance, BalanceConfig, BalanceLosses, update_bias
from tapwater.model.context import AttentionContext, CacheView, Sequences
from tapwater.model.transformer import Output, Transformer, positions_of

__all__ = [
    "AttentionContext",
    "Balance",
    "BalanceConfig",
    "BalanceLosses",
    "CacheView",
    "Output",
    "Sequences",
    "Transformer",
    "positions_of",
    "update_bias",
]
