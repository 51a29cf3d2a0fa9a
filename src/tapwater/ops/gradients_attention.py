"""Causal attention with gradients: a backward pass that computes the scores anew.

torch's flash kernel multiplies small tiles, in its backward pass up to three times slower than they can be; its forward
pass serves but for bfloat16 on processors with tile instructions. In the backward pass heads that share keys are one
thread's work.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tapwater.ops import native_training as rows


@torch.library.custom_op("tapwater::attention", mutates_args=())
def forward_pass(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """As reference.attention: an op of torch's, so that what chooses what to compute again sees it."""
    return rows.attention(q_THd, k_TGd, v_TGv, lengths, scale)


@forward_pass.register_fake
def _(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    return q_THd.new_empty(*q_THd.shape[:2], v_TGv.shape[2])


class _Attention(Function):
    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: tuple[int, ...], scale: float
    ) -> Tensor:
        ctx.save_for_backward(q_THd, k_TGd, v_TGv)
        ctx.lengths, ctx.scale = lengths, scale
        return forward_pass(q_THd, k_TGd, v_TGv, lengths, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THv: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        q_THd, k_TGd, v_TGv = ctx.saved_tensors
        return *rows.attention_backward(q_THd, k_TGd, v_TGv, dy_THv, ctx.lengths, ctx.scale), None, None


def attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """As reference.attention."""
    return _Attention.apply(q_THd, k_TGd, v_TGv, tuple(lengths), scale)
