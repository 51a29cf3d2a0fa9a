"""Causal attention with gradients. In bfloat16 the backward pass is matrix products over blocks of queries.

torch's flash kernel multiplies small tiles, in its backward pass several times slower than whole matrices: its forward
pass is kept, its backward pass is not. There scores are rounded to bfloat16, and at most a block of them is in memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from tapwater.ops import native_training as rows
from tapwater.ops import reference

QUERIES = 512  # of a block: keys after its last query take no part
BLOCK_BYTES = 8 << 20  # of scores


def attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """As reference.attention."""
    if q_THd.dtype is torch.bfloat16:
        return _Attention.apply(q_THd, k_TGd, v_TGv, tuple(lengths), scale)
    return _forward(q_THd, k_TGd, v_TGv, lengths, scale)


def _forward(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    width = v_TGv.shape[-1]
    if width < q_THd.shape[-1]:  # torch's flash kernel wants values as wide as keys
        v_TGv = F.pad(v_TGv, (0, q_THd.shape[-1] - width))
    return reference.attention(q_THd, k_TGd, v_TGv, lengths, scale)[..., :width]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: tuple[int, ...], scale: float
    ) -> Tensor:
        ctx.save_for_backward(q_THd, k_TGd, v_TGv)
        ctx.lengths, ctx.scale = lengths, scale
        return _forward(q_THd, k_TGd, v_TGv, lengths, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THv: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        saved = ctx.saved_tensors  # once: where they are computed again they are given out once
        inputs = (*saved, dy_THv)
        outputs = tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in saved)
        heads = inputs[0].shape[1]
        for start, length, count in reference.runs(ctx.lengths):
            block = min(length, QUERIES)
            some = max(1, BLOCK_BYTES // (2 * heads * block * length))
            for first in range(0, count, some):
                tokens = slice(start + first * length, start + min(first + some, count) * length)
                _sequences_backward([each[tokens] for each in (*inputs, *outputs)], length, ctx.scale)
        return *outputs, None, None


def _sequences_backward(tensors: list[Tensor], length: int, scale: float) -> None:
    """The last three of q, k, v, dy, dq, dk, dv, all [sequences * length, heads, width], from the others."""
    groups = tensors[1].shape[1]
    q, k, v, dy, dq, dk, dv = (_by_group(each, groups, length) for each in tensors)
    k_bsd, v_bsv = k.flatten(0, 3).unflatten(0, (-1, length)), v.flatten(0, 3).unflatten(0, (-1, length))
    whole = length <= QUERIES
    dk_bsd, dv_bsv = (torch.zeros_like(each, dtype=each.dtype if whole else torch.float32) for each in (k_bsd, v_bsv))
    for first in range(0, length, QUERIES):
        end = min(first + QUERIES, length)
        # the queries of all heads that share keys are rows of one matrix
        q_bnd, dy_bnv = (each[:, :, :, first:end].flatten(2, 3).flatten(0, 1) for each in (q, dy))
        keys_bsd, values_bsv = k_bsd[:, :end], v_bsv[:, :end]
        weights_bns, dscores_bns = q_bnd @ keys_bsd.transpose(1, 2), dy_bnv @ values_bsv.transpose(1, 2)
        rows.attend_backward(weights_bns, dscores_bns, end - first, first, scale)
        dq[:, :, :, first:end] = (dscores_bns @ keys_bsd).view(dq[:, :, :, first:end].shape)
        dk_bsd[:, :end] += dscores_bns.transpose(1, 2) @ q_bnd
        dv_bsv[:, :end] += weights_bns.transpose(1, 2) @ dy_bnv
    dk.copy_(dk_bsd.view(dk.shape))
    dv.copy_(dv_bsv.view(dv.shape))


def _by_group(x_THd: Tensor, groups: int, length: int) -> Tensor:
    """[sequences, groups, heads of a group, length, d]"""
    return x_THd.unflatten(0, (-1, length)).unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
