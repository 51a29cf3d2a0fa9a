"""The specification of every op in plain torch: what a native kernel must reproduce, and what runs without one.

Shapes use the legend's letters (docs/architecture.md): T tokens in this call, B requests, H query heads, G key-value
heads, d head width, D hidden, E experts, K experts per token, F expert width, P pages, S slots per page, C latent,
R rope, N nope, V value, X one cache entry. All ops are differentiable except those that touch the paged cache.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own customary name
from torch import Tensor

from tapwater.ops.quant import GROUP, Format, PackedWeight, unpack

OUTLIERS = 4  # largest numbers of a row that packed products keep in float


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """x @ weight^T."""
    return F.linear(x_TI, weight_OI)


def linears(x_TI: Tensor, *weights_OI: Tensor) -> tuple[Tensor, ...]:
    """x @ weight^T for each weight."""
    return tuple(F.linear(x_TI, weight_OI) for weight_OI in weights_OI)


def packed_linear(x_TI: Tensor, weight: PackedWeight, outliers: int = OUTLIERS) -> Tensor:
    """x @ weight^T in float32, x rounded first: to bfloat16 for bf16 weights, else to 8 bits.

    8 bits means 127 steps to the largest magnitude of each row and group of 32; the `outliers` largest magnitudes of a
    row stay as they are and take no part in that.
    """
    if weight.format is Format.BF16:
        return F.linear(x_TI.bfloat16().float(), unpack(weight))
    x_TI = x_TI.float()
    kept = x_TI.abs().topk(min(outliers, x_TI.shape[1]), dim=-1).indices
    padded = F.pad(x_TI.scatter(-1, kept, 0.0), (0, -weight.columns % GROUP)).unflatten(-1, (-1, GROUP))
    largest = padded.abs().amax(-1, keepdim=True)
    # a true division, as the kernels do: torch makes `127 / tensor` a product with the reciprocal
    inverse = torch.where(largest > 0, torch.tensor(127.0) / largest, 0.0)
    steps = (padded * inverse).round()
    rounded = (steps * (largest / 127)).flatten(-2)[:, : weight.columns]
    return F.linear(rounded.scatter(-1, kept, x_TI.gather(-1, kept)), unpack(weight))


def packed_swiglu(x_TD: Tensor, gate: PackedWeight, up: PackedWeight, down: PackedWeight) -> Tensor:
    """down(silu(gate x) * up x) of packed matrices; between them no outliers are kept."""
    return packed_linear(F.silu(packed_linear(x_TD, gate)) * packed_linear(x_TD, up), down, outliers=0)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight; statistics in float32 whatever the dtype of x."""
    x = x_TD.float()
    return weight_D * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)).to(x_TD.dtype)


def swiglu(x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """down(silu(gate x) * up x)."""
    return F.linear(F.silu(F.linear(x_TD, gate_FD)) * F.linear(x_TD, up_FD), down_DF)


def rotate_interleaved(x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor) -> Tensor:
    """RoPE on neighbouring pairs (x0, x1), (x2, x3), ...: the layout of DeepSeek-V2 and V3 weights."""
    even, odd = x_THR.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_TR2[:, None], sin_TR2[:, None]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x_THR.dtype)


def rotate_half(x_THd: Tensor, cos_Td2: Tensor, sin_Td2: Tensor) -> Tensor:
    """RoPE on pairs (x_i, x_{i + d/2}): the layout of Llama weights on Hugging Face."""
    low, high = x_THd.float().chunk(2, dim=-1)
    cos, sin = cos_Td2[:, None], sin_Td2[:, None]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x_THd.dtype)


def latent_heads(
    q_THd: Tensor, kv_THE: Tensor, k_rope_TR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of every head in MLA's expanded form (report appendix C, equations 37-47).

    `q_THd` is [nope N, rope R] of each head, `kv_THE` [nope N, value V]; rope parts are rotated here. The one rope key
    goes to all heads.
    """
    nope = q_THd.shape[-1] - k_rope_TR.shape[-1]
    k_nope_THN, v_THV = kv_THE.split([nope, kv_THE.shape[-1] - nope], dim=-1)
    k_rope_T1R = rotate_interleaved(k_rope_TR[:, None], cos_TR2, sin_TR2)
    k_THd = torch.cat((k_nope_THN, k_rope_T1R.expand(-1, q_THd.shape[1], -1)), dim=-1)
    q_rope_THR = rotate_interleaved(q_THd[..., nope:], cos_TR2, sin_TR2)
    return torch.cat((q_THd[..., :nope], q_rope_THR), dim=-1), k_THd, v_THV


def linear_cross_entropy(hidden_TD: Tensor, weight_WD: Tensor, targets_T: Tensor, mask_T: Tensor) -> Tensor:
    """The sum of -log softmax(hidden @ weight^T)[target] over the rows where the mask is true, in nats, float32."""
    losses_T = F.cross_entropy(F.linear(hidden_TD, weight_WD).float(), targets_T, reduction="none")
    return losses_T.masked_fill(~mask_T, 0.0).sum()


def experts(
    x_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    kept_TK: Tensor | None = None,
) -> Tensor:
    """sum_k weights[t, k] * swiglu_{expert_ids[t, k]}(x[t]): one matmul per touched expert, tokens sorted by expert.

    Assignments with `kept_TK` false are neither computed nor added (training's token dropping).
    """
    num_experts, num_chosen = gate_EFD.shape[0], expert_ids_TK.shape[1]
    expert_A = expert_ids_TK.flatten()
    order_A = expert_A.argsort(stable=True)
    if kept_TK is not None:
        order_A = order_A[kept_TK.flatten()[order_A]]
    token_A = order_A // num_chosen
    counts = torch.bincount(expert_A[order_A], minlength=num_experts).tolist()
    pieces = [
        swiglu(x, gate_EFD[expert], up_EFD[expert], down_EDF[expert])
        for expert, x in enumerate(x_TD[token_A].split(counts))
        if x.shape[0]
    ]
    combined_TD = torch.zeros_like(x_TD)
    if not pieces:
        return combined_TD
    y_AD = torch.cat(pieces) * weights_TK.flatten()[order_A, None]
    return combined_TD.index_add(0, token_A, y_AD.to(x_TD.dtype))


def attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each of consecutive sequences of `lengths` tokens, without a cache; returns [T, H, v]."""
    outputs = []
    for start, length, count in runs(lengths):
        stop = start + length * count
        q, k, v = (each[start:stop].unflatten(0, (count, length)).transpose(1, 2) for each in (q_THd, k_TGd, v_TGv))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def store(pages_PSX: Tensor, slots_T: Tensor, entries_TX: Tensor) -> None:
    """Write each token's cache entry to its slot (page * S + offset), in place."""
    pages_PSX.flatten(0, 1).index_copy_(0, slots_T, entries_TX.to(pages_PSX.dtype))


def paged_attention(
    q_THd: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    num_kv_heads: int,
    scale: float,
) -> Tensor:
    """Grouped attention of each request's new tokens over its pages; an entry is [keys G*d, values G*d].

    The last `query_lengths[b]` of the `context_lengths[b]` cached tokens are the queries. Returns [T, H, d].
    """

    def attend(q_bnHd: Tensor, entries_bsX: Tensor, visible_bns: Tensor) -> Tensor:
        k_bsGd, v_bsGd = entries_bsX.unflatten(-1, (2, num_kv_heads, -1)).unbind(2)
        return _attend(q_bnHd, k_bsGd, v_bsGd, visible_bns, scale)

    return _per_group(q_THd, pages_PSX, page_table_BP, query_lengths, context_lengths, attend)


def paged_mla_absorb(
    q_THX: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    kv_lora_rank: int,
    scale: float,
) -> Tensor:
    """Latent attention in absorbed form: every head reads the one cached stream [latent C, rope key R].

    `q_THX` is [W_UK^T q_nope, rotated q_rope]. Returns the attended latent [T, H, C], still to be multiplied by W_UV
    (report section 2.1.2).
    """

    def attend(q_bnHX: Tensor, entries_bsX: Tensor, visible_bns: Tensor) -> Tensor:
        # one stream serves all heads: as further queries of one head they share it, as heads it would be repeated
        num_heads = q_bnHX.shape[2]
        rows_bm1X = q_bnHX.flatten(1, 2).unsqueeze(2)
        k_bs1X = entries_bsX.unsqueeze(2)
        visible_bms = visible_bns.repeat_interleave(num_heads, dim=1)
        out_bm1C = _attend(rows_bm1X, k_bs1X, k_bs1X[..., :kv_lora_rank], visible_bms, scale)
        return out_bm1C.unflatten(1, (-1, num_heads)).squeeze(3)

    return _per_group(q_THX, pages_PSX, page_table_BP, query_lengths, context_lengths, attend)


def paged_mla_expand(
    q_THd: Tensor,
    kv_b_HEC: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    qk_nope_head_dim: int,
    scale: float,
) -> Tensor:
    """Latent attention in expanded form: keys and values of every head are rebuilt from the cached latents.

    `q_THd` is [q_nope N, rotated q_rope R]; `kv_b_HEC` holds [W_UK (N rows), W_UV (V rows)] of each head. Returns
    [T, H, V] (report appendix C, equations 37-47).
    """
    rank = kv_b_HEC.shape[-1]

    def attend(q_bnHd: Tensor, entries_bsX: Tensor, visible_bns: Tensor) -> Tensor:
        latent_bsC, k_rope_bsR = entries_bsX.split([rank, entries_bsX.shape[-1] - rank], dim=-1)
        kv_bsHE = F.linear(latent_bsC, kv_b_HEC.flatten(0, 1)).unflatten(-1, (kv_b_HEC.shape[0], -1))
        k_nope, v_bsHV = kv_bsHE.split([qk_nope_head_dim, kv_bsHE.shape[-1] - qk_nope_head_dim], dim=-1)
        k_bsHd = torch.cat((k_nope, k_rope_bsR.unsqueeze(2).expand(-1, -1, k_nope.shape[2], -1)), dim=-1)
        return _attend(q_bnHd, k_bsHd, v_bsHV, visible_bns, scale)

    return _per_group(q_THd, pages_PSX, page_table_BP, query_lengths, context_lengths, attend)


def _attend(q_bnHd: Tensor, k_bsGd: Tensor, v_bsGv: Tensor, visible_bns: Tensor, scale: float) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q_bnHd, k_bsGd, v_bsGv))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible_bns[:, None], scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def _per_group(
    q_THd: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Run `attend` once per run of neighbouring requests with the same number of new tokens (decodes go together)."""
    page_size = pages_PSX.shape[1]
    outputs = []
    first = 0
    for start, length, count in runs(query_lengths):
        contexts = torch.tensor(context_lengths[first : first + count], device=q_THd.device)
        num_pages = -(-int(contexts.max()) // page_size)
        entries = pages_PSX[page_table_BP[first : first + count, :num_pages]].flatten(1, 2)
        position_s = torch.arange(entries.shape[1], device=q_THd.device)
        # Slots past a request's end hold other requests' leavings, or NaN: a zero weight alone would not silence NaN.
        entries.masked_fill_((position_s >= contexts[:, None])[..., None], 0)
        last_bn = contexts[:, None] - length + torch.arange(length, device=q_THd.device)
        visible_bns = position_s <= last_bn[..., None]
        q = q_THd[start : start + length * count].unflatten(0, (count, length))
        outputs.append(attend(q, entries, visible_bns).flatten(0, 1))
        first += count
    return torch.cat(outputs)


def runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbouring sequences of equal length as (first token, length, how many)."""
    runs: list[tuple[int, int, int]] = []
    token = 0
    for length in lengths:
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0], length, runs[-1][2] + 1)
        else:
            runs.append((token, length, 1))
        token += length
    return runs
