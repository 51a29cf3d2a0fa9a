"""Causal attention with gradients: torch's forward pass, and a backward pass that computes the scores anew.

torch's flash kernel multiplies small tiles, in its backward pass up to three times slower than they can be. With AMX
it is faster for one sequence of thousands of tokens, whose keys no second cache holds. Heads that share keys are one
thread's work.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tapwater.ops import native_training as rows
from tapwater.ops import reference


class _Attention(Function):
    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: tuple[int, ...], scale: float
    ) -> Tensor:
        ctx.save_for_backward(q_THd, k_TGd, v_TGv)
        ctx.lengths, ctx.scale = lengths, scale
        width = v_TGv.shape[-1]
        if width < q_THd.shape[-1]:  # torch's flash kernel wants values as wide as keys
            v_TGv = F.pad(v_TGv, (0, q_THd.shape[-1] - width))
        return reference.attention(q_THd, k_TGd, v_TGv, lengths, scale)[..., :width]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THv: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        q_THd, k_TGd, v_TGv = ctx.saved_tensors
        return *rows.attention_backward(q_THd, k_TGd, v_TGv, dy_THv, ctx.lengths, ctx.scale), None, None


def attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """As reference.attention."""
    return _Attention.apply(q_THd, k_TGd, v_TGv, tuple(lengths), scale)
