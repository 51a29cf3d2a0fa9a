"""The models that the report compares latent attention with."""

from tapwater.config import ModelConfig, replace_fields


def with_mha(config: ModelConfig, heads: int) -> ModelConfig:
    """The report's ablation twin (appendix D.2): the same model with plain attention of 128-wide heads."""
    mla = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rope_scaling")
    changes = dict.fromkeys(mla) | {"model_type": "deepseek", "head_dim": 128}
    changes |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    changes |= {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
    return replace_fields(config, changes, "ablation")
