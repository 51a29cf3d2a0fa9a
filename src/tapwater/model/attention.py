"""Attention: grouped (MHA, GQA, MQA) and Multi-head Latent Attention in its two equal forms.

MLA, with h the layer's input, c the latent that is cached and i a head (report appendix C):

    expand     k_i = [W_UK,i c ; k_R]     o_i = sum_j p_ij W_UV,i c_j         rebuilds keys and values: long chunks
    absorb     q'_i = W_UK,i^T q_N,i      o_i = W_UV,i (sum_j p_ij c_j)       reads the cache as it is: decode

The scores q_i . k_j and q'_i . c_j + q_R,i . k_R,j are the same numbers; only the order of the products differs.
"""

import torch
from torch import Tensor, nn

from tapwater import ops
from tapwater.config import ModelConfig
from tapwater.model.context import AttentionContext, CachePart, CacheView, Sequences
from tapwater.model.layers import Linear, RMSNorm
from tapwater.model.recompute import run_again_but_attention
from tapwater.model.rope import Rotation, softmax_scale

# Published checkpoints were trained with this eps on the latents, whatever rms_norm_eps says (always 1e-6 so far).
LATENT_NORM_EPS = 1e-6


class GroupedAttention(nn.Module):
    """Softmax attention whose H query heads share G key-value heads (G = H: MHA, G = 1: MQA)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.attention_head_dim
        self.scale = softmax_scale(config)
        self.q_proj = Linear(config.hidden_size, self.num_heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.num_kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.num_kv_heads * self.head_dim)
        self.o_proj = Linear(self.num_heads * self.head_dim, config.hidden_size)

    def forward(self, x_TD: Tensor, rotation: Rotation, context: AttentionContext, layer: int) -> Tensor:
        q, k, v = ops.linears(x_TD, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        q_THd = ops.rotate_half(q.unflatten(-1, (self.num_heads, -1)), *rotation)
        k_TGd = ops.rotate_half(k.unflatten(-1, (self.num_kv_heads, -1)), *rotation)
        v_TGd = v.unflatten(-1, (self.num_kv_heads, -1))
        if isinstance(context, Sequences):
            out_THd = ops.attention(q_THd, k_TGd, v_TGd, context.lengths, self.scale)
        else:
            pages_PSX = context.pages_LPSX[layer]
            ops.store(pages_PSX, context.slots_T, torch.cat((k_TGd, v_TGd), dim=1).flatten(1))
            out_THd = ops.paged_attention(
                q_THd,
                pages_PSX,
                context.page_table_BP,
                context.query_lengths,
                context.context_lengths,
                self.num_kv_heads,
                self.scale,
            )
        return self.o_proj(out_THd.flatten(1))


class LatentAttention(nn.Module):
    """MLA, with query compression when `q_lora_rank` is set (V2, V3) and without (V2-Lite)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mla = config.mla
        self.num_heads = config.num_attention_heads
        self.kv_lora_rank = mla.kv_lora_rank
        self.qk_nope_head_dim = mla.qk_nope_head_dim
        self.qk_rope_head_dim = mla.qk_rope_head_dim
        self.v_head_dim = mla.v_head_dim
        self.scale = softmax_scale(config)
        self.expands_again = False  # see Transformer.recompute
        query_width = self.num_heads * config.qk_head_dim
        self.q_lora_rank = config.q_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, query_width)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, query_width)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, mla.kv_lora_rank + mla.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(mla.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(mla.kv_lora_rank, self.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim))
        self.o_proj = Linear(self.num_heads * mla.v_head_dim, config.hidden_size)

    def forward(self, x_TD: Tensor, rotation: Rotation, context: AttentionContext, layer: int) -> Tensor:
        if isinstance(context, Sequences):
            kept = (*self._project_latent(x_TD), self._project_queries(x_TD), rotation, context)
            if self.expands_again and torch.is_grad_enabled():
                out_THV = run_again_but_attention(self._expand_uncached, *kept)
            else:
                out_THV = self._expand_uncached(*kept)
        else:
            q_nope_THN, q_rope_THR = self.queries(x_TD, rotation)
            latent_TC, k_rope_TR = self.compress(x_TD, rotation)
            ops.store(context.pages_LPSX[layer], context.slots_T, torch.cat((latent_TC, k_rope_TR), dim=-1))
            out_THV = self._attend_cached(q_nope_THN, q_rope_THR, context, layer)
        return self.o_proj(out_THV.flatten(1))

    def queries(self, x_TD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Per-head queries: the part without position [T, H, N] and the rotated part [T, H, R]."""
        q_nope, q_rope = self._project_queries(x_TD).split([self.qk_nope_head_dim, self.qk_rope_head_dim], -1)
        return q_nope, ops.rotate_interleaved(q_rope, *rotation)

    def compress(self, x_TD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """What is cached: the normalised latent [T, C] and the rotated key all heads share [T, R]."""
        latent, k_rope = self._project_latent(x_TD)
        return self.kv_a_layernorm(latent), ops.rotate_interleaved(k_rope[:, None], *rotation)[:, 0]

    def absorb_is_cheaper(self, query_length: int, context_length: int) -> bool:
        """Whether the absorbed form takes fewer multiplications for a chunk of `query_length` over the context.

        Absorb pays (2C + R) per query-key pair and the two absorptions per query; expand pays (N + R + V) per pair
        and rebuilds keys and values once per cached token. Per head; V2 crosses near 170 tokens.
        """
        nope, rope, value, rank = self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim, self.kv_lora_rank
        up = rank * (nope + value)
        absorb = query_length * (context_length * (2 * rank + rope) + up)
        expand = query_length * context_length * (nope + rope + value) + context_length * up
        return absorb < expand

    def absorb(self, q_nope_THN: Tensor, q_rope_THR: Tensor, pages_PSX: Tensor, part: CachePart) -> Tensor:
        """Attention over the cached latents as they are; returns [T, H, V]."""
        key_up_HNC, value_up_HVC = self._up_projections().split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
        q_latent_THC = torch.einsum("thn,hnc->thc", q_nope_THN, key_up_HNC)
        attended_THC = ops.paged_mla_absorb(
            torch.cat((q_latent_THC, q_rope_THR), dim=-1),
            pages_PSX,
            part.page_table_BP,
            part.query_lengths,
            part.context_lengths,
            self.kv_lora_rank,
            self.scale,
        )
        return torch.einsum("thc,hvc->thv", attended_THC, value_up_HVC)

    def expand(self, q_nope_THN: Tensor, q_rope_THR: Tensor, pages_PSX: Tensor, part: CachePart) -> Tensor:
        """Attention over keys and values rebuilt from the cached latents; returns [T, H, V]."""
        return ops.paged_mla_expand(
            torch.cat((q_nope_THN, q_rope_THR), dim=-1),
            self._up_projections(),
            pages_PSX,
            part.page_table_BP,
            part.query_lengths,
            part.context_lengths,
            self.qk_nope_head_dim,
            self.scale,
        )

    def _attend_cached(self, q_nope_THN: Tensor, q_rope_THR: Tensor, view: CacheView, layer: int) -> Tensor:
        out_THV = q_nope_THN.new_empty(*q_nope_THN.shape[:2], self.v_head_dim)
        short = view.select(self.absorb_is_cheaper)
        long = view.select(lambda query, context: not self.absorb_is_cheaper(query, context))
        for part, attend in ((short, self.absorb), (long, self.expand)):
            if part is not None:
                tokens = part.tokens_t
                out_THV[tokens] = attend(q_nope_THN[tokens], q_rope_THR[tokens], view.pages_LPSX[layer], part)
        return out_THV

    def _expand_uncached(
        self, latent_TC: Tensor, k_rope_TR: Tensor, q_THd: Tensor, rotation: Rotation, sequences: Sequences
    ) -> Tensor:
        """Attention of whole sequences from what a layer's input is projected to, neither normed nor rotated yet."""
        kv_THE = self.kv_b_proj(self.kv_a_layernorm(latent_TC)).unflatten(-1, (self.num_heads, -1))
        q_THd, k_THd, v_THV = ops.latent_heads(q_THd, kv_THE, k_rope_TR, *rotation)
        return ops.attention(q_THd, k_THd, v_THV, sequences.lengths, self.scale)

    def _project_queries(self, x_TD: Tensor) -> Tensor:
        """Per-head queries [T, H, N + R], not rotated yet."""
        if self.q_lora_rank is None:
            q = self.q_proj(x_TD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD)))
        return q.unflatten(-1, (self.num_heads, -1))

    def _project_latent(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The latent [T, C] before its norm and the rope key [T, R] before its rotation."""
        latent, k_rope = self.kv_a_proj_with_mqa(x_TD).split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        return latent, k_rope

    def _up_projections(self) -> Tensor:
        """kv_b_proj by head: [H, N + V, C], W_UK above W_UV."""
        return self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
