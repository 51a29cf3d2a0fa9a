"""The metadata of a GGUF file with DeepSeek-V2 weights, as llama.cpp's converter writes it today."""

from typing import Any

from gguf import TokenType
from tokenizers.pre_tokenizers import ByteLevel

from tapwater.config import ModelConfig, RopeScaling
from tapwater.errors import ConfigError

SOFTMAX_GATE = 1


def metadata(config: ModelConfig) -> dict[str, Any]:
    """llama.cpp's keys for the shape; attention is described by the absorbed head and, as `_mla`, the expanded one."""
    mla, moe = config.mla, config.moe
    C, N, R, V = mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim
    fields = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.kv_lora_rank": C,
        "attention.key_length": C + R,
        "attention.value_length": C,
        "attention.key_length_mla": N + R,
        "attention.value_length_mla": V,
        "rope.dimension_count": R,
        "rope.freq_base": config.rope_theta,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": moe.n_routed_experts,
        "expert_used_count": moe.num_experts_per_tok,
        "expert_shared_count": moe.n_shared_experts,
        "expert_feed_forward_length": moe.moe_intermediate_size,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": SOFTMAX_GATE,
        "expert_group_count": moe.n_group,
        "expert_group_used_count": moe.topk_group,
    } | _yarn(config.rope_scaling)
    named = {f"deepseek2.{key}": value for key, value in fields.items()}
    return {"general.type": "model", "general.name": "random weights"} | named


def _yarn(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {}
    fields = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling.factor,
        "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
    }
    if scaling.mscale_all_dim is not None:
        fields["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling.mscale_all_dim
    return fields


def tokenizer_metadata(config: ModelConfig) -> dict[str, Any]:
    """The smallest byte-level BPE every reader accepts: 256 bytes, one merge, BOS, EOS; other ids are no tokens."""
    if config.bos_token_id is None or not config.eos_token_ids:
        raise ConfigError("bos_token_id and eos_token_id are needed to write a tokenizer")
    used = [*sorted(ByteLevel.alphabet()), "Ġt"]
    tokens = used + [f"[PAD{token}]" for token in range(len(used), config.vocab_size)]
    kinds = [TokenType.NORMAL] * len(used) + [TokenType.UNUSED] * (config.vocab_size - len(used))
    ids = {"bos": config.bos_token_id, "eos": config.eos_token_ids[0]}
    for name, token in ids.items():
        if token < len(used):
            raise ConfigError(f"{name}_token_id {token} is below {len(used)}, where the bytes are")
        tokens[token], kinds[token] = f"<|{name}|>", TokenType.CONTROL
    fields = {"model": "gpt2", "pre": "deepseek-llm", "tokens": tokens, "token_type": [int(kind) for kind in kinds]}
    fields |= {"merges": ["Ġ t"], "add_bos_token": False} | {f"{name}_token_id": token for name, token in ids.items()}
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
