"""Muon for stacks of matrices: what torch.optim.Muon does to a matrix, done to each of [E, rows, columns] at once."""

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor

# Keller Jordan's quintic (kellerjordan.github.io/posts/muon), the defaults of torch.optim.Muon
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Momentum made orthogonal, matrix by matrix of 3-D parameters; torch.optim.Muon takes 2-D ones only.

    State (`momentum_buffer`), decoupled weight decay, Nesterov momentum and the rate's factor
    sqrt(max(1, rows / columns)) are those of torch.optim.Muon. Parameters may be DTensors; split by matrices (the
    first dimension) they need no communication.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 3:
                    raise ValueError(f"StackedMuon takes stacks of matrices, got {list(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyrefly: ignore[bad-override]
        """Update every parameter that has a gradient. Raises ValueError for a closure: one is never needed here."""
        if closure is not None:
            raise ValueError("StackedMuon.step takes no closure")
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - momentum)
                update = orthogonal(parameter.grad.lerp(buffer, momentum))
                rows, columns = parameter.shape[1:]
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * sqrt(max(1, rows / columns)))


def orthogonal(stack_EMN: Tensor) -> Tensor:
    """Each matrix U S V^T brought near U V^T by five Newton-Schulz iterations in bfloat16; returns bfloat16."""
    a, b, c = COEFFICIENTS
    x = stack_EMN.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if is_tall else x
