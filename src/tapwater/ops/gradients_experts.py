"""Routed experts with gradients: every product of an expert reads and writes its part of one buffer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tapwater.ops import native_training as rows


@dataclass(frozen=True)
class Plan:
    """Which rows of the sorted buffers belong to which expert and token.

    `parts` are (expert, first row, end) of experts that have tokens; `assignment_A` is t * K + k, or -1 for rows that
    only fill up a part; `row_TK` the row of an assignment, or -1 where it was dropped.
    """

    parts: tuple[tuple[int, int, int], ...]
    assignment_A: Tensor
    row_TK: Tensor

    @property
    def token_A(self) -> Tensor:  # noqa: N802
        return torch.where(self.assignment_A < 0, -1, self.assignment_A // self.row_TK.shape[1])


def plan(expert_ids_TK: Tensor, num_experts: int, kept_TK: Tensor | None, dtype: torch.dtype) -> Plan:
    """Assignments sorted by expert, each expert's part of a round size."""
    expert_A = expert_ids_TK.flatten()
    if kept_TK is not None:
        expert_A = torch.where(kept_TK.flatten(), expert_A, num_experts)
    counts = torch.bincount(expert_A, minlength=num_experts + 1)[:num_experts].tolist()
    order_A = expert_A.argsort(stable=True)[: sum(counts)]
    parts: list[tuple[int, int, int]] = []
    shifts: list[int] = []
    end = taken = 0
    for expert, count in enumerate(counts):
        shifts.append(end - taken)
        taken += count
        if count:
            parts.append((expert, end, end + _round_size(count, dtype)))
            end = parts[-1][2]
    row_A = torch.arange(taken) + torch.tensor(shifts, dtype=torch.int64)[expert_A[order_A]]
    assignment_A = torch.full((end,), -1).index_copy_(0, row_A, order_A)
    row_TK = torch.full_like(expert_A, -1).index_copy_(0, order_A, row_A).view(expert_ids_TK.shape)
    return Plan(tuple(parts), assignment_A, row_TK)


def _round_size(count: int, dtype: torch.dtype) -> int:
    """At least `count`, at most an eighth more and a few rows.

    torch's bfloat16 products compile a kernel for each shape they meet, which takes ten times as long as one product:
    with eight sizes to an octave they soon have met them all.
    """
    if dtype is torch.float32:
        return count
    step = 1 << max(count.bit_length() - 4, 3)
    return -(-count // step) * step


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        gate_EFD: Tensor,
        up_EFD: Tensor,
        down_EDF: Tensor,
        chosen: Plan,
    ) -> Tensor:
        x_AD = rows.gather(x_TD, chosen.token_A)
        gate_AF, up_AF = (x_TD.new_empty(x_AD.shape[0], gate_EFD.shape[1]) for _ in range(2))
        for expert, start, end in chosen.parts:
            torch.mm(x_AD[start:end], gate_EFD[expert].T, out=gate_AF[start:end])
            torch.mm(x_AD[start:end], up_EFD[expert].T, out=up_AF[start:end])
        product_AF = rows.silu_product(gate_AF, up_AF)
        y_AD = x_AD  # of the same shape, and of no further use
        for expert, start, end in chosen.parts:
            torch.mm(product_AF[start:end], down_EDF[expert].T, out=y_AD[start:end])
        ctx.save_for_backward(x_TD, weights_TK, gate_EFD, up_EFD, down_EDF, gate_AF, up_AF)
        ctx.chosen = chosen
        return rows.combine(y_AD, chosen.row_TK, weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        x_TD, weights_TK, gate_EFD, up_EFD, down_EDF, gate_AF, up_AF = ctx.saved_tensors
        chosen = ctx.chosen
        dy_AD = rows.gather(dy_TD, chosen.token_A)
        dproduct_AF = torch.empty_like(gate_AF)
        for expert, start, end in chosen.parts:
            torch.mm(dy_AD[start:end], down_EDF[expert], out=dproduct_AF[start:end])
        weight_A = rows.gather(weights_TK.reshape(-1, 1), chosen.assignment_A)[:, 0]
        product_AF, dgate_AF, dup_AF, dweight_A = rows.silu_product_backward(gate_AF, up_AF, dproduct_AF, weight_A)

        ddown_EDF, dgate_EFD, dup_EFD = (torch.empty_like(each) for each in (down_EDF, gate_EFD, up_EFD))
        for expert in set(range(gate_EFD.shape[0])).difference(expert for expert, _, _ in chosen.parts):
            for gradient in (ddown_EDF, dgate_EFD, dup_EFD):
                gradient[expert].zero_()
        x_AD = rows.gather(x_TD, chosen.token_A)
        dx_AD = torch.empty_like(x_AD)
        for expert, start, end in chosen.parts:
            dgate_aF, dup_aF, dx_aD = dgate_AF[start:end], dup_AF[start:end], dx_AD[start:end]
            torch.mm(dy_AD[start:end].T, product_AF[start:end], out=ddown_EDF[expert])
            torch.mm(dgate_aF.T, x_AD[start:end], out=dgate_EFD[expert])
            torch.mm(dup_aF.T, x_AD[start:end], out=dup_EFD[expert])
            torch.mm(dgate_aF, gate_EFD[expert], out=dx_aD)
            torch.addmm(dx_aD, dup_aF, up_EFD[expert], out=dx_aD)
        assert dweight_A is not None  # weights were given
        dweights_TK = rows.gather(dweight_A[:, None], chosen.row_TK.flatten()).view(weights_TK.shape)
        return rows.combine(dx_AD, chosen.row_TK, None), dweights_TK, dgate_EFD, dup_EFD, ddown_EDF, None


def experts(
    x_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    kept_TK: Tensor | None = None,
) -> Tensor:
    """As reference.experts; the K products of a token are added in float32."""
    chosen = plan(expert_ids_TK, gate_EFD.shape[0], kept_TK, x_TD.dtype)
    return _Experts.apply(x_TD, weights_TK.float(), gate_EFD, up_EFD, down_EDF, chosen)
