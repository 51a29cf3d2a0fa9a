"""Parameters, cache elements and FLOPs of a model, counted from its configuration.

A multi-token-prediction layer is counted apart: published totals leave it out.
"""

from dataclasses import dataclass
from functools import lru_cache

from tapwater.config import ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Weights of the main model, norms and routing biases included; `by_part` adds up to `total`.

    Published "activated" figures follow different conventions (FFN of the chosen and shared experts in all of them):
    `active` counts both embeddings, `active_without_input_embedding` the head only (2.4B of V2-Lite, 37B of V3),
    `active_without_embeddings` neither. `mtp` is what the multi-token-prediction layers add, shared tensors left out.
    """

    total: int
    active: int
    active_without_input_embedding: int
    active_without_embeddings: int
    by_part: dict[str, int]
    mtp: int


@dataclass(frozen=True)
class LayerParameters:
    """Weights of one layer by how they can be spread over devices."""

    attention_heads: int  # belongs to single heads
    attention_common: int  # MLA's compressions and their norms, which serve all heads
    norms: int
    feed_forward: int  # dense, or the shared experts
    gate: int
    routed: int


@dataclass(frozen=True)
class Flops:
    """Floating-point operations (a multiply and an add are two) of one token."""

    matmul: float  # weights
    attention: float  # scores and weighted values over the context

    @property
    def total(self) -> float:
        return self.matmul + self.attention


@lru_cache(maxsize=64)
def parameters(config: ModelConfig) -> Parameters:
    """Exact number of weights, by part and by the conventions of what one token activates."""
    moe_layers = num_moe_layers(config)
    embedding = config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * _attention(config)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    dense = (config.num_hidden_layers - moe_layers) * _swiglu(config, config.intermediate_size)
    routed, shared, gate = (moe_layers * each for each in _moe_layer(config))
    by_part = {
        "input embedding": embedding,
        "attention": attention,
        "norms": norms,
        "dense feed-forward": dense,
        "shared experts": shared,
        "routed experts": routed,
        "gates": gate,
        "output head": 0 if config.tie_word_embeddings else embedding,
    }
    chosen = routed * config.moe.num_experts_per_tok // config.moe.n_routed_experts if config.is_moe else 0
    body = attention + norms + dense + shared + gate + chosen
    return Parameters(
        total=sum(by_part.values()),
        active=body + embedding + by_part["output head"],
        active_without_input_embedding=body + embedding,  # a tied head is still multiplied by
        active_without_embeddings=body,
        by_part=by_part,
        mtp=config.num_nextn_predict_layers * _mtp_layer(config),
    )


@lru_cache(maxsize=64)
def num_moe_layers(config: ModelConfig) -> int:
    """Layers with routed experts."""
    return sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))


@lru_cache(maxsize=4096)
def layer_parameters(config: ModelConfig, layer: int) -> LayerParameters:
    """The weights of one layer, which add up with embeddings and the last norm to `parameters(config).total`."""
    attention, common = _attention(config), 0
    if config.is_mla:
        common = config.hidden_size * (config.mla.kv_lora_rank + config.mla.qk_rope_head_dim) + config.mla.kv_lora_rank
        if config.q_lora_rank is not None:
            common += config.hidden_size * config.q_lora_rank + config.q_lora_rank
    routed, feed_forward, gate = 0, _swiglu(config, config.intermediate_size), 0
    if config.is_moe_layer(layer):
        routed, feed_forward, gate = _moe_layer(config)
    return LayerParameters(attention - common, common, 2 * config.hidden_size, feed_forward, gate, routed)


def grouped_kv_elements(config: ModelConfig, num_key_value_heads: int) -> int:
    """Cached numbers per token if the same layers and heads used keys and values of so many heads (report Table 1)."""
    head_dim = config.mla.v_head_dim if config.is_mla else config.attention_head_dim
    return 2 * num_key_value_heads * head_dim * config.num_hidden_layers


def expand_kv_elements(config: ModelConfig) -> int:
    """Cached numbers per token if MLA's expanded keys and values were cached: the mistake of early implementations."""
    per_head = config.qk_head_dim + config.mla.v_head_dim
    return config.num_attention_heads * per_head * config.num_hidden_layers


def flops_per_token(config: ModelConfig, context: int, *, absorbed: bool) -> Flops:
    """Forward FLOPs of one token that attends to `context` tokens.

    `absorbed` MLA (decode) multiplies every head with the latent, width C + R for scores and C for values; expanded
    attention (prefill, training, and every other model) has the heads' own widths. Absorbing W_UK and W_UV costs as
    much as the kv_b_proj it replaces.
    """
    matmul = 2.0 * parameters(config).active_without_input_embedding
    if config.is_mla and absorbed:
        width = 2 * config.mla.kv_lora_rank + config.mla.qk_rope_head_dim
    else:
        width = _score_and_value_width(config)
    return Flops(matmul, 2.0 * config.num_attention_heads * width * context * config.num_hidden_layers)


def training_flops_per_token(config: ModelConfig, sequence: float, *, causal: bool = True) -> Flops:
    """Forward and backward (twice the forward) of one token; causal: on average half the sequence is attended to.

    Not causal counts the masked half too, as some papers and kernels do.
    """
    forward = flops_per_token(config, 1, absorbed=False)
    return Flops(3 * forward.matmul, 3 * forward.attention * sequence / (2 if causal else 1))


def mtp_training_flops_per_token(config: ModelConfig, sequence: float) -> Flops:
    """What multi-token prediction adds to training_flops_per_token: each module a layer, a projection and the head."""
    routed, shared, gate = _moe_layer(config)
    feed_forward: float = _swiglu(config, config.intermediate_size)
    if config.is_moe:
        feed_forward = shared + gate + routed * config.moe.num_experts_per_tok / config.moe.n_routed_experts
    weights = _attention(config) + feed_forward + 2 * config.hidden_size**2 + config.vocab_size * config.hidden_size
    attention = 2.0 * config.num_attention_heads * _score_and_value_width(config) * sequence / 2
    modules = config.num_nextn_predict_layers
    return Flops(3 * 2.0 * modules * weights, 3 * modules * attention)


def _score_and_value_width(config: ModelConfig) -> int:
    """Of one head, where keys and values are its own."""
    return config.qk_head_dim + config.mla.v_head_dim if config.is_mla else 2 * config.attention_head_dim


def _attention(config: ModelConfig) -> int:
    hidden, heads = config.hidden_size, config.num_attention_heads
    if not config.is_mla:
        return 2 * hidden * (heads + config.num_key_value_heads) * config.attention_head_dim
    mla = config.mla
    query_width = heads * config.qk_head_dim
    query = hidden * query_width
    if config.q_lora_rank is not None:
        query = hidden * config.q_lora_rank + config.q_lora_rank + config.q_lora_rank * query_width
    compress = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim) + mla.kv_lora_rank
    expand = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    return query + compress + expand + heads * mla.v_head_dim * hidden


def _swiglu(config: ModelConfig, width: int) -> int:
    return 3 * config.hidden_size * width


def _moe_layer(config: ModelConfig) -> tuple[int, int, int]:
    """Routed experts, shared experts and gate of one MoE layer."""
    if not config.is_moe:
        return 0, 0, 0
    moe = config.moe
    expert = _swiglu(config, moe.moe_intermediate_size)
    bias = moe.n_routed_experts if config.topk_method == "noaux_tc" else 0
    return (
        moe.n_routed_experts * expert,
        moe.n_shared_experts * expert,
        moe.n_routed_experts * config.hidden_size + bias,
    )


def _mtp_layer(config: ModelConfig) -> int:
    feed_forward = sum(_moe_layer(config)) if config.is_moe else _swiglu(config, config.intermediate_size)
    norms_and_projection = 5 * config.hidden_size + 2 * config.hidden_size**2
    return _attention(config) + feed_forward + norms_and_projection
