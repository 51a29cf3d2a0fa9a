"""Tiny random models of transformers, one per way the architectures can differ."""

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

COMMON = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MLA = {"kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "num_key_value_heads": 4}
MOE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "first_k_dense_replace": 1}
GROUPS = {"n_group": 4, "topk_group": 2}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "rope_theta": 1000.0,
}
MSCALES = {"mscale": 0.707, "mscale_all_dim": 0.707}

LLAMA = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "wide-heads": {"num_key_value_heads": 2, "head_dim": 20},
    "tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "yarn": {"num_key_value_heads": 2, "rope_parameters": YARN},
    "yarn-mscales": {"num_key_value_heads": 2, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    "eps": {"num_key_value_heads": 2, "rms_norm_eps": 0.01},
}
V2 = {
    "lite": {"q_lora_rank": None, "n_shared_experts": 2},
    "q-lora": {"q_lora_rank": 16, "n_shared_experts": 1},
    "grouped": {"q_lora_rank": 16, "n_shared_experts": 2, "topk_method": "group_limited_greedy", **GROUPS},
    "no-shared": {"q_lora_rank": None, "n_shared_experts": 0, "first_k_dense_replace": 0},
    "two-dense": {"q_lora_rank": 16, "n_shared_experts": 1, "first_k_dense_replace": 2, "routed_scaling_factor": 16.0},
    "yarn": {"q_lora_rank": None, "n_shared_experts": 1, "rope_parameters": YARN | MSCALES},
    "yarn-one-mscale": {
        "q_lora_rank": 16,
        "n_shared_experts": 1,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    },
    "eps": {"q_lora_rank": 16, "n_shared_experts": 1, "rms_norm_eps": 0.01},
    "yarn-no-mscale": {"q_lora_rank": None, "n_shared_experts": 1, "rope_parameters": YARN},
}
V3 = {
    "noaux": {"q_lora_rank": 16, "n_shared_experts": 1, **GROUPS},
    "no-q-lora": {"q_lora_rank": None, "n_shared_experts": 2, **GROUPS},
    "one-group": {"q_lora_rank": 16, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "unnormalised": {"q_lora_rank": 16, "n_shared_experts": 1, "norm_topk_prob": False, **GROUPS},
    "yarn": {"q_lora_rank": 16, "n_shared_experts": 1, "rope_parameters": YARN | MSCALES, **GROUPS},
    "two-dense": {"q_lora_rank": 16, "n_shared_experts": 1, "first_k_dense_replace": 2, **GROUPS},
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, COMMON, LLAMA),
    "v2": (DeepseekV2Config, DeepseekV2ForCausalLM, COMMON | MLA | MOE, V2),
    "v3": (DeepseekV3Config, DeepseekV3ForCausalLM, COMMON | MLA | MOE | {"num_nextn_predict_layers": 0}, V3),
}
NAMES = [f"{family}/{name}" for family, (*_, variants) in FAMILIES.items() for name in variants]


def oracle(name: str, **changes: object) -> torch.nn.Module:
    """The transformers model of a variant, every weight random (norms and routing bias too), eager attention."""
    family, _, variant = name.partition("/")
    config_class, model_class, common, variants = FAMILIES[family]
    config = config_class(**(common | variants[variant] | changes), attn_implementation="eager")
    torch.manual_seed(sum(name.encode()))
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.12)
            if parameter.ndim == 1:
                parameter.add_(1.0)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.3)
    return model.eval()
