"""The loss over a vocabulary with its gradient, without the logits of all tokens ever being in memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tapwater.ops import native_training as rows
from tapwater.ops.gradients import weight_gradients

CHUNK_BYTES = 256 << 20  # of logits; each chunk passes once over the whole weight and its gradient


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_WD: Tensor, targets_R: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        count, vocab = hidden_RD.shape[0], weight_WD.shape[0]
        most = max(16, CHUNK_BYTES // (vocab * hidden_RD.element_size()))
        chunk = -(-count // -(-count // most))  # chunks of one size
        logits_rW = hidden_RD.new_empty(chunk, vocab)
        dhidden_RD = torch.empty_like(hidden_RD) if ctx.needs_input_grad[0] else None
        dweight_WD = None
        loss = torch.zeros(())
        for start in range(0, count, chunk):
            hidden_rD = hidden_RD[start : start + chunk]
            part_rW = logits_rW[: len(hidden_rD)]
            torch.mm(hidden_rD, weight_WD.T, out=part_rW)
            loss += rows.cross_entropy(part_rW, targets_R[start : start + chunk]).sum()
            if dhidden_RD is not None:
                torch.mm(part_rW, weight_WD, out=dhidden_RD[start : start + chunk])
            if ctx.needs_input_grad[1]:
                (of_part_WD,) = weight_gradients(hidden_rD, part_rW)
                if dweight_WD is None:
                    dweight_WD = of_part_WD if chunk == count else of_part_WD.float()
                else:
                    dweight_WD += of_part_WD
        ctx.save_for_backward(dhidden_RD, dweight_WD)
        ctx.dtype = weight_WD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        dhidden_RD, dweight_WD = ctx.saved_tensors
        if dhidden_RD is not None:
            dhidden_RD = dhidden_RD * dloss
        if dweight_WD is not None:
            dweight_WD = torch.mul(dweight_WD, dloss, out=torch.empty_like(dweight_WD, dtype=ctx.dtype))
        return dhidden_RD, dweight_WD, None


def linear_cross_entropy(hidden_TD: Tensor, weight_WD: Tensor, targets_T: Tensor, mask_T: Tensor) -> Tensor:
    """As reference.linear_cross_entropy; the gradient is computed with the loss, a chunk of tokens at a time.

    Raises IndexError for a target outside the vocabulary.
    """
    if not mask_T.all():
        hidden_TD, targets_T = hidden_TD[mask_T], targets_T[mask_T]
    if not targets_T.numel():
        return (hidden_TD.float().sum() + weight_WD[:0].float().sum()) * 0
    low, high = (int(bound) for bound in torch.aminmax(targets_T))
    if low < 0 or high >= weight_WD.shape[0]:
        raise IndexError(f"target {low if low < 0 else high} is outside 0..{weight_WD.shape[0] - 1}")
    return _LinearCrossEntropy.apply(hidden_TD, weight_WD, targets_T)
