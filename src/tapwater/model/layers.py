"""The small modules everything else is made of."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tapwater import ops


class Linear(nn.Module):
    """y = x W^T without bias: no model of the family has biases."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x_TI: Tensor) -> Tensor:
        return ops.linear(x_TI, self.weight)


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, tokens_T: Tensor) -> Tensor:
        return F.embedding(tokens_T, self.weight)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        return ops.rms_norm(x_TD, self.weight, self.eps)


class SwiGLU(nn.Module):
    """The dense feed-forward block, and the shared experts (one block of n_shared_experts times the width)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        return ops.swiglu(x_TD, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
