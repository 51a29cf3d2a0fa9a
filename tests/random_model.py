"""A DeepSeek-V2-Lite small enough to write as a GGUF file of 4-bit blocks in a moment."""

from tapwater.config import preset, replace_fields

SHAPE = replace_fields(
    preset("deepseek-v2-lite"),
    {
        "vocab_size": 512,
        "bos_token_id": 500,
        "eos_token_id": 501,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "max_position_embeddings": 4096,
    },
    "small deepseek-v2-lite",
)
