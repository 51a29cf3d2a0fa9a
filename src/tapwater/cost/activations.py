"""Numbers a layer keeps of each token between its forward and its backward pass: our model of good software.

With recomputation "none", attention without stored scores and a token of width D, per layer:

    residual stream    4 D                        input, its norm, the middle, its norm
    MLA                2 Q + 2 C + R              latents before and after their norms, rope key; 2 Q only if compressed
                       H (2 (N + R) + 2 V)        queries, keys, values, outputs (divided by tp)
    grouped            2 H d + 2 G d              the same (divided by tp)
    feed-forward       3 F                        gate, up, their product (divided by tp)
    experts            (K + N_s) 3 F + 2 K D + E  K copies sent, K results, affinities (all but E divided by tp)

"selective" keeps neither norms' outputs nor SwiGLU's product, nor for MLA anything but the latents before their norms
and the outputs: 2 D, Q + C + R + H V, 2 F; nor experts' results, whose weights it applies before the last product, so
K D. "full" keeps D. Both hold one layer's "none" while they compute it again. Training in fp8 keeps inputs of products
in fp8: one byte a number instead of two (DeepSeek-V3 report section 3.3.3; some it keeps wider).
"""

from tapwater.config import ModelConfig

BYTES = 2  # of a number in bf16, as it is computed


def saved_elements(config: ModelConfig, layer: int, recomputation: str, tp: int) -> float:
    """Numbers kept per token on one of tp devices; `recomputation` one of recipe.RECOMPUTATION."""
    hidden = config.hidden_size
    if recomputation == "full":
        return hidden
    kept = recomputation == "none"
    return (4 if kept else 2) * hidden + _attention(config, kept, tp) + _feed_forward(config, layer, kept, tp)


def layers_saved(config: ModelConfig, layers: range, recomputation: str, tp: int) -> float:
    """The same, summed over layers."""
    return sum(saved_elements(config, layer, recomputation, tp) for layer in layers)


def _attention(config: ModelConfig, kept: bool, tp: int) -> float:
    heads = config.num_attention_heads
    if not config.is_mla:
        width = config.attention_head_dim
        groups = -(-config.num_key_value_heads // tp)
        return 2 * heads * width / tp + 2 * groups * width
    mla = config.mla
    query, latent, rope = config.q_lora_rank or 0, mla.kv_lora_rank, mla.qk_rope_head_dim
    if kept:
        return 2 * query + 2 * latent + rope + heads * 2 * (config.qk_head_dim + mla.v_head_dim) / tp
    return query + latent + rope + heads * mla.v_head_dim / tp


def _feed_forward(config: ModelConfig, layer: int, kept: bool, tp: int) -> float:
    factor = 3 if kept else 2
    if not config.is_moe_layer(layer):
        return factor * config.intermediate_size / tp
    moe = config.moe
    used = moe.num_experts_per_tok + moe.n_shared_experts
    copies = (2 if kept else 1) * moe.num_experts_per_tok
    spread = used * factor * moe.moe_intermediate_size + copies * config.hidden_size
    return spread / tp + moe.n_routed_experts
