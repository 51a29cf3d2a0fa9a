"""What `gradients.py` does to rows between matrix products, in torch: the specification of csrc/training.cpp.

Storage is float32 or bfloat16, arithmetic float32, each result rounded once. Row indices of -1 name no row: they
read zeros and are not added. Shapes are those of reference.py, with A for assignments of tokens to experts, sorted by
expert.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tapwater.ops import reference


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, and 1 / rms of each in float32."""
    x = x_TD.float()
    inverse_T = torch.rsqrt(x.pow(2).mean(-1) + eps)
    return (weight_D.float() * (x * inverse_T[:, None])).to(x_TD.dtype), inverse_T


def rms_norm_backward(dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, inverse_T: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    normed, dy = x_TD.float() * inverse_T[:, None], dy_TD.float()
    dnormed = dy * weight_D.float()
    dx = inverse_T[:, None] * (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True))
    return dx.to(x_TD.dtype), (dy * normed).sum(0).to(weight_D.dtype)


def silu_product(gate_AF: Tensor, up_AF: Tensor) -> Tensor:
    """silu(gate) * up."""
    return (F.silu(gate_AF.float()) * up_AF.float()).to(gate_AF.dtype)


def silu_product_backward(
    gate_AF: Tensor, up_AF: Tensor, dy_AF: Tensor, weight_A: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """weight * silu(gate) * up anew, the gradients of gate and up, and that of the weights.

    `dy_AF` is the gradient of weight * silu(gate) * up but for its factor weight; without weights they are 1.
    """
    gate, up, dy = gate_AF.float(), up_AF.float(), dy_AF.float()
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    product = silu * up
    dweight_A = None
    if weight_A is not None:
        dweight_A = (product * dy).sum(-1)
        product, dy = product * weight_A[:, None], dy * weight_A[:, None]
    dgate = dy * up * sigmoid * (1 + gate * (1 - sigmoid))
    dtype = gate_AF.dtype
    return product.to(dtype), dgate.to(dtype), (dy * silu).to(dtype), dweight_A


def transposed(x_TD: Tensor) -> Tensor:
    """x's columns as rows that lie side by side in memory."""
    return x_TD.T.contiguous()


def gather(x_TD: Tensor, row_A: Tensor) -> Tensor:
    """Row row_A[a] of x for each a."""
    if not x_TD.shape[0]:
        return x_TD.new_zeros(row_A.shape[0], x_TD.shape[1])
    return x_TD[row_A.clamp(min=0)].masked_fill_(row_A[:, None] < 0, 0)


def combine(y_AD: Tensor, row_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """sum_k weights[t, k] * y[row[t, k]]; without weights they are 1."""
    out_TD = torch.zeros(row_TK.shape[0], y_AD.shape[1])
    for k, row_T in enumerate(row_TK.unbind(1)):
        rows_TD = gather(y_AD, row_T).float()
        out_TD += rows_TD if weights_TK is None else rows_TD * weights_TK[:, k, None]
    return out_TD.to(y_AD.dtype)


def rotate(x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, layout: str, sign: float = 1.0) -> Tensor:
    """RoPE on pairs that are `interleaved` or `half` a width apart; with sign -1 its transpose, which turns back."""
    x, cos, sin = x_THR.float(), cos_TR2[:, None], sign * sin_TR2[:, None]
    if layout == "interleaved":
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x_THR.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_THR.dtype)


def cross_entropy(logits_RW: Tensor, targets_R: Tensor) -> Tensor:
    """-log p of each row's target in float32; the logits become the gradient of their sum, in place."""
    logits = logits_RW.to(torch.float32, copy=True)
    largest = logits.amax(-1, keepdim=True)
    chosen = logits.gather(1, targets_R[:, None])
    exponents = logits.sub_(largest).exp_()
    total = exponents.sum(-1, keepdim=True)
    loss_R = (total.log() + largest - chosen)[:, 0]
    gradient = exponents.div_(total)
    gradient.scatter_add_(1, targets_R[:, None], gradient.new_full((len(targets_R), 1), -1.0))
    logits_RW.copy_(gradient)
    return loss_R


def add_gradient(total: Tensor, x: Tensor, is_first: bool) -> Tensor:
    """total = x, or total + x where it is not the first; the sum of total's squares in float64."""
    if is_first:
        total.copy_(x)
    else:
        total += x
    return torch.linalg.vector_norm(total).double() ** 2


def round_to(y: Tensor, x: Tensor) -> None:
    """y = x, rounded to y's dtype."""
    y.copy_(x)


def attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each of consecutive sequences, as reference.attention."""
    width = v_TGv.shape[-1]
    if width < q_THd.shape[-1]:  # torch's flash kernel wants values as wide as keys
        v_TGv = F.pad(v_TGv, (0, q_THd.shape[-1] - width))
    return reference.attention(q_THd, k_TGd, v_TGv, lengths, scale)[..., :width]


def attention_backward(
    q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, dy_THv: Tensor, lengths: Sequence[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of causal attention within each of consecutive sequences."""
    dq_THd, dk_TGd, dv_TGv = torch.empty_like(q_THd), torch.empty_like(k_TGd), torch.empty_like(v_TGv)
    groups = k_TGd.shape[1]
    sharing = q_THd.shape[1] // groups  # heads of one group's keys
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        start += length
        unseen_ll = torch.ones(length, length, dtype=torch.bool).triu(1)
        for group in range(groups):
            heads = slice(group * sharing, (group + 1) * sharing)
            q_hld, dy_hlv = (each[part, heads].float().transpose(0, 1) for each in (q_THd, dy_THv))
            k_ld, v_lv = k_TGd[part, group].float(), v_TGv[part, group].float()
            weights_hll = (scale * (q_hld @ k_ld.T)).masked_fill(unseen_ll, -torch.inf).softmax(-1)
            dweights_hll = dy_hlv @ v_lv.T
            dscores_hll = scale * weights_hll * (dweights_hll - (weights_hll * dweights_hll).sum(-1, keepdim=True))
            dq_THd[part, heads] = (dscores_hll @ k_ld).transpose(0, 1).to(q_THd.dtype)
            dk_TGd[part, group] = (dscores_hll.mT @ q_hld).sum(0).to(k_TGd.dtype)
            dv_TGv[part, group] = (weights_hll.mT @ dy_hlv).sum(0).to(v_TGv.dtype)
    return dq_THd, dk_TGd, dv_TGv


def latent_heads(
    q_THd: Tensor, kv_THE: Tensor, k_rope_TR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of MLA as attention takes them.

    `q_THd` is [nope, rope], `kv_THE` [nope, value] of each head, rope parts not rotated yet; one rope key serves all.
    """
    _, heads, width = q_THd.shape
    nope = width - k_rope_TR.shape[1]
    q_rope_THR = rotate(q_THd[..., nope:], cos_TR2, sin_TR2, "interleaved")
    turned_TR = rotate(k_rope_TR[:, None], cos_TR2, sin_TR2, "interleaved")
    k_THd = torch.cat((kv_THE[..., :nope], turned_TR.expand(-1, heads, -1)), dim=-1)
    return torch.cat((q_THd[..., :nope], q_rope_THR), dim=-1), k_THd, kv_THE[..., nope:].contiguous()


def latent_heads_backward(
    dq_THd: Tensor, dk_THd: Tensor, dv_THV: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, of keys and values [T, H, nope + value], and of the rope key."""
    nope = dq_THd.shape[2] - 2 * cos_TR2.shape[1]
    dq_rope_THR = rotate(dq_THd[..., nope:], cos_TR2, sin_TR2, "interleaved", -1)
    dk_rope_TR = dk_THd[..., nope:].float().sum(1).to(dk_THd.dtype)
    dkv_THE = torch.cat((dk_THd[..., :nope], dv_THV), dim=-1)
    dq_THd = torch.cat((dq_THd[..., :nope], dq_rope_THR), dim=-1)
    return dq_THd, dkv_THE, rotate(dk_rope_TR[:, None], cos_TR2, sin_TR2, "interleaved", -1)[:, 0]
