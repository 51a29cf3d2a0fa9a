"""The operations models are made of. `reference` is their specification; faster forms take its place by name:
`gradients` where autograd records on the CPU, native kernels behind `model.PackedTransformer`."""

from collections.abc import Sequence

from torch import Tensor

from tapwater.ops import gradients, gradients_attention, gradients_experts, gradients_loss, reference
from tapwater.ops.reference import paged_attention, paged_mla_absorb, paged_mla_expand, store

__all__ = [
    "attention",
    "experts",
    "latent_heads",
    "linear",
    "linear_cross_entropy",
    "linears",
    "paged_attention",
    "paged_mla_absorb",
    "paged_mla_expand",
    "rms_norm",
    "rotate_half",
    "rotate_interleaved",
    "store",
    "swiglu",
]


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """See reference.linear."""
    form = gradients if x_TI.ndim == 2 and gradients.are_wanted(x_TI, weight_OI) else reference
    return form.linear(x_TI, weight_OI)


def linears(x_TI: Tensor, *weights_OI: Tensor) -> tuple[Tensor, ...]:
    """See reference.linears."""
    form = gradients if x_TI.ndim == 2 and gradients.are_wanted(x_TI, *weights_OI) else reference
    return form.linears(x_TI, *weights_OI)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    form = gradients if gradients.are_wanted(x_TD, weight_D) else reference
    return form.rms_norm(x_TD, weight_D, eps)


def swiglu(x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """See reference.swiglu."""
    form = gradients if gradients.are_wanted(x_TD, gate_FD, up_FD, down_DF) else reference
    return form.swiglu(x_TD, gate_FD, up_FD, down_DF)


def rotate_interleaved(x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor) -> Tensor:
    """See reference.rotate_interleaved."""
    form = gradients if gradients.are_wanted(x_THR) else reference
    return form.rotate_interleaved(x_THR, cos_TR2, sin_TR2)


def rotate_half(x_THd: Tensor, cos_Td2: Tensor, sin_Td2: Tensor) -> Tensor:
    """See reference.rotate_half."""
    form = gradients if gradients.are_wanted(x_THd) else reference
    return form.rotate_half(x_THd, cos_Td2, sin_Td2)


def latent_heads(
    q_THd: Tensor, kv_THE: Tensor, k_rope_TR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.latent_heads."""
    form = gradients if gradients.are_wanted(q_THd, kv_THE, k_rope_TR) else reference
    return form.latent_heads(q_THd, kv_THE, k_rope_TR, cos_TR2, sin_TR2)


def experts(
    x_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    kept_TK: Tensor | None = None,
) -> Tensor:
    """See reference.experts."""
    form = gradients_experts if gradients.are_wanted(x_TD, gate_EFD, up_EFD, down_EDF) else reference
    return form.experts(x_TD, expert_ids_TK, weights_TK, gate_EFD, up_EFD, down_EDF, kept_TK)


def attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """See reference.attention."""
    form = gradients_attention if gradients.are_wanted(q_THd, k_TGd, v_TGv) else reference
    return form.attention(q_THd, k_TGd, v_TGv, lengths, scale)


def linear_cross_entropy(hidden_TD: Tensor, weight_WD: Tensor, targets_T: Tensor, mask_T: Tensor) -> Tensor:
    """See reference.linear_cross_entropy."""
    form = gradients_loss if gradients.are_wanted(hidden_TD, weight_WD) else reference
    return form.linear_cross_entropy(hidden_TD, weight_WD, targets_T, mask_T)
