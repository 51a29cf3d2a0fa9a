"""The DeepSeekMoE block: shared experts every token sees, routed experts the gate picks."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from tapwater import ops
from tapwater.config import ModelConfig
from tapwater.model.balance import Balance, BalanceLosses, balance_losses, kept_assignments
from tapwater.model.context import AttentionContext
from tapwater.model.gate import Gate, Routing
from tapwater.model.layers import SwiGLU


class Experts(nn.Module):
    """The routed experts' weights, stacked: one SwiGLU of width moe_intermediate_size per expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, hidden, width = config.moe.n_routed_experts, config.hidden_size, config.moe.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(experts, width, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x_TD: Tensor, routing: Routing, kept_TK: Tensor | None) -> Tensor:
        return ops.experts(
            x_TD, routing.expert_ids_TK, routing.weights_TK, self.gate_proj, self.up_proj, self.down_proj, kept_TK
        )


class Dispatcher(Protocol):
    """How tokens reach their experts and come back; expert parallelism supplies one that crosses processes.

    The call sends the tokens off; what it returns, called once, is the routed experts' sum [T, D]. The shared experts
    are computed in between, while tokens travel.
    """

    def __call__(
        self, experts: Experts, x_TD: Tensor, routing: Routing, kept_TK: Tensor | None
    ) -> Callable[[], Tensor]: ...


def local_dispatch(experts: Experts, x_TD: Tensor, routing: Routing, kept_TK: Tensor | None) -> Callable[[], Tensor]:
    """All experts are here."""
    y_TD = experts(x_TD, routing, kept_TK)
    return lambda: y_TD


class MoE(nn.Module):
    """h = shared(x) + sum_k weight_k * expert_k(x) (report equation 20; the residual is the layer's)."""

    def __init__(self, config: ModelConfig, dispatch: Dispatcher) -> None:
        super().__init__()
        moe = config.moe
        self.dispatch = dispatch
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = (
            SwiGLU(config.hidden_size, moe.n_shared_experts * moe.moe_intermediate_size)
            if moe.n_shared_experts
            else None
        )

    def forward(
        self, x_TD: Tensor, context: AttentionContext, balance: Balance | None
    ) -> tuple[Tensor, BalanceLosses | None]:
        """The block's output [T, D], and the balance losses when `balance` asks for them."""
        routing = self.gate(x_TD)
        losses, kept_TK = None, None
        if balance is not None:
            losses = balance_losses(routing, balance.row_lengths or context.query_lengths, balance.config)
            kept_TK = kept_assignments(routing, balance)
        routed = self.dispatch(self.experts, x_TD, routing, kept_TK)
        if self.shared_experts is None:
            return routed(), losses
        shared_TD = self.shared_experts(x_TD)
        return routed() + shared_TD, losses
