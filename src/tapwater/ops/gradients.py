"""Ops of reference.py, same names and signatures, where gradients are wanted on the CPU: backward passes by hand.

Autograd of the reference writes every intermediate number of a row to memory and reads it back; here a row goes
through once, by row_loops or the native kernels that take their place. Results differ from the reference's by rounding
only. The dtype is float32 or bfloat16 and the same for all arguments, but for routing weights, cosines and sines.
Gradients of gradients are not defined.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from tapwater.ops import native_training as rows
from tapwater.ops import reference


def are_wanted(*tensors: Tensor) -> bool:
    """Whether autograd records this call and it is one the functions here take."""
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return False
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.bfloat16)
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def weight_gradients(x_TI: Tensor, *dy_TO: Tensor) -> list[Tensor]:
    """dy^T x for each dy: the gradients of the weights [O, I] that x is multiplied with.

    torch's bfloat16 product takes half as long again where its first matrix lies transposed in memory. Where one side
    is much narrower than the other the narrow one is turned first: dy, or x and then the product.
    """
    turned_IT: Tensor | None = None
    found: list[Tensor] = []
    for dy in dy_TO:
        if _is_worth_turning(dy, x_TI):
            found.append(rows.transposed(dy) @ x_TI)
        elif _is_worth_turning(x_TI, dy):
            turned_IT = rows.transposed(x_TI) if turned_IT is None else turned_IT
            found.append(rows.transposed(turned_IT @ dy))
        else:
            found.append(dy.T @ x_TI)
    return found


def _is_worth_turning(narrow: Tensor, wide: Tensor) -> bool:
    return narrow.dtype is torch.bfloat16 and 5 * narrow.shape[1] <= 2 * wide.shape[1]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:  # pyrefly: ignore[bad-override]
        y_TD, inverse_T = rows.rms_norm(x_TD, weight_D, eps)
        ctx.save_for_backward(x_TD, weight_D, inverse_T)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        return *rows.rms_norm_backward(dy_TD, *ctx.saved_tensors), None


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As reference.rms_norm, but rounded once, after the weight."""
    return _Norm.apply(x_TD, weight_D, eps)


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, *weights_OI: Tensor) -> tuple[Tensor, ...]:  # pyrefly: ignore[bad-override]
        ctx.save_for_backward(x_TI, *weights_OI)
        return reference.linears(x_TI, *weights_OI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dy_TO: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        x_TI, *weights_OI = ctx.saved_tensors
        dx_TI = _sum_of_products(dy_TO, weights_OI) if ctx.needs_input_grad[0] else None
        found = weight_gradients(x_TI, *dy_TO) if any(ctx.needs_input_grad[1:]) else [None] * len(weights_OI)
        return dx_TI, *found


def _sum_of_products(dy_TO: Sequence[Tensor], weights_OI: Sequence[Tensor]) -> Tensor:
    total_TI = dy_TO[0] @ weights_OI[0]
    for dy, weight_OI in zip(dy_TO[1:], weights_OI[1:], strict=True):
        total_TI.addmm_(dy, weight_OI)
    return total_TI


def linears(x_TI: Tensor, *weights_OI: Tensor) -> tuple[Tensor, ...]:
    """As reference.linears."""
    return _Linears.apply(x_TI, *weights_OI)


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """As reference.linear."""
    return linears(x_TI, weight_OI)[0]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        gate_TF, up_TF = F.linear(x_TD, gate_FD), F.linear(x_TD, up_FD)
        ctx.save_for_backward(x_TD, gate_FD, up_FD, down_DF, gate_TF, up_TF)
        return F.linear(rows.silu_product(gate_TF, up_TF), down_DF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, ...]:  # pyrefly: ignore[bad-override]
        x_TD, gate_FD, up_FD, down_DF, gate_TF, up_TF = ctx.saved_tensors
        product_TF, dgate_TF, dup_TF, _ = rows.silu_product_backward(gate_TF, up_TF, dy_TD @ down_DF, None)
        dx_TD = torch.addmm(dgate_TF @ gate_FD, dup_TF, up_FD)
        return dx_TD, *weight_gradients(x_TD, dgate_TF, dup_TF), *weight_gradients(product_TF, dy_TD)


def swiglu(x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """As reference.swiglu; the product of gate and up is not kept for the backward pass but computed anew."""
    return _SwiGLU.apply(x_TD, gate_FD, up_FD, down_DF)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, layout: str) -> Tensor:  # pyrefly: ignore[bad-override]
        ctx.save_for_backward(cos_TR2, sin_TR2)
        ctx.layout = layout
        return rows.rotate(x_THR, cos_TR2, sin_TR2, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THR: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        cos_TR2, sin_TR2 = ctx.saved_tensors
        return rows.rotate(dy_THR, cos_TR2, sin_TR2, ctx.layout, -1), None, None, None


def rotate_interleaved(x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor) -> Tensor:
    """As reference.rotate_interleaved."""
    return _Rotation.apply(x_THR, cos_TR2, sin_TR2, "interleaved")


def rotate_half(x_THd: Tensor, cos_Td2: Tensor, sin_Td2: Tensor) -> Tensor:
    """As reference.rotate_half."""
    return _Rotation.apply(x_THd, cos_Td2, sin_Td2, "half")


class _LatentHeads(torch.autograd.Function):
    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, q_THd: Tensor, kv_THE: Tensor, k_rope_TR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos_TR2, sin_TR2)
        return rows.latent_heads(q_THd, kv_THE, k_rope_TR, cos_TR2, sin_TR2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq_THd: Tensor, dk_THd: Tensor, dv_THV: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        return *rows.latent_heads_backward(dq_THd, dk_THd, dv_THV, *ctx.saved_tensors), None, None


def latent_heads(
    q_THd: Tensor, kv_THE: Tensor, k_rope_TR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As reference.latent_heads."""
    return _LatentHeads.apply(q_THd, kv_THE, k_rope_TR, cos_TR2, sin_TR2)
