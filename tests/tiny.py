"""Small random models for tests: one per attention and gate family, with weights large enough to tell tokens apart."""

import functools

import torch

from tapwater.config import ModelConfig, preset, replace_fields
from tapwater.model import Sequences, Transformer

CONFIGS: dict[str, ModelConfig] = {
    "v2": replace_fields(preset("tiny"), {"initializer_range": 0.12, "vocab_size": 96}, "v2"),
    "v2-lite-yarn": replace_fields(
        preset("tiny"),
        {
            "initializer_range": 0.12,
            "vocab_size": 96,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
        "v2-lite-yarn",
    ),
    "v3": replace_fields(
        preset("tiny"),
        {
            "initializer_range": 0.12,
            "vocab_size": 96,
            "model_type": "deepseek_v3",
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        "v3",
    ),
    "llama-gqa": ModelConfig(
        model_type="llama",
        vocab_size=96,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.12,
    ),
    "deepseek-moe": ModelConfig(
        model_type="deepseek",
        vocab_size=96,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.12,
        n_routed_experts=6,
        n_shared_experts=2,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
    ),
}


@functools.cache
def tiny_model(name: str) -> Transformer:
    return Transformer.random(CONFIGS[name], seed=3).eval().requires_grad_(False)


def prompt(length: int, seed: int, vocab_size: int = 96) -> list[int]:
    return torch.randint(2, vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@functools.cache
def uncached_greedy(name: str, prompt_ids: tuple[int, ...], count: int) -> list[int]:
    """Greedy continuation that computes the whole sequence anew for every token: the oracle of cached generation."""
    model = tiny_model(name)
    ids = list(prompt_ids)
    for _ in range(count):
        length = (len(ids),)
        hidden = model(torch.tensor(ids), Sequences(length).positions(), Sequences(length)).hidden_TD
        ids.append(int(model.logits(hidden[-1:]).argmax()))
    return ids[len(prompt_ids) :]
