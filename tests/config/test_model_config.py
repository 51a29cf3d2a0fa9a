"""ModelConfig: published configs read, contradictions and unknown fields named."""

import json
from pathlib import Path

import pytest

from oracle.variants import NAMES, oracle
from tapwater.config import from_hf, preset, preset_names, read_config, to_hf
from tapwater.errors import ConfigError

# config.json of DeepSeek-V2 as published, bookkeeping keys included
PUBLISHED_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1536,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def test_the_published_config_is_the_preset_but_for_the_placeholder_std() -> None:
    assert to_hf(from_hf(PUBLISHED_V2, "v2")) == to_hf(preset("deepseek-v2")) | {"initializer_range": 0.02}


@pytest.mark.parametrize("name", preset_names())
def test_presets_survive_config_json(name: str) -> None:
    assert from_hf(json.loads(json.dumps(to_hf(preset(name)))), name) == preset(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_transformers_writes_is_read(name: str) -> None:
    config = oracle(name).config
    ours = from_hf(config.to_dict(), name)
    assert ours.hidden_size == config.hidden_size
    assert (ours.rope_scaling is not None) == (config.rope_parameters["rope_type"] == "yarn")
    assert ours.rope_theta == config.rope_parameters["rope_theta"]
    assert ours.num_key_value_heads == config.num_key_value_heads


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hiden_size": 5}, "hiden_size.*hidden_size"),
        ({"hidden_size": "5120"}, "hidden_size: expected int, got str"),
        ({"hidden_size": 5120.0}, "hidden_size: expected int, got float"),
        ({"hidden_size": True}, "hidden_size: expected int, got bool"),
        ({"hidden_size": -1}, "hidden_size must be positive"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_hidden_layers": 10**8}, "num_hidden_layers must be at most"),
        ({"n_routed_experts": 10**8}, "n_routed_experts must be at most"),
        ({"hidden_size": None}, "missing field 'hidden_size'"),
        ({"model_type": "mixtral"}, "model_type.*mixtral.*deepseek_v2"),
        ({"model_type": None}, "missing field 'model_type'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"kv_lora_rank": None}, "missing kv_lora_rank"),
        ({"head_dim": 128}, "head_dim 128 contradicts"),
        ({"qk_head_dim": 100}, "qk_head_dim 100 contradicts"),
        ({"num_key_value_heads": 8}, "num_key_value_heads 8 must equal"),
        ({"qk_rope_head_dim": 63}, "even"),
        ({"num_experts_per_tok": 161}, "num_experts_per_tok 161"),
        ({"num_experts_per_tok": 61}, "60 experts"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is not"),
        ({"n_routed_experts": None}, "n_routed_experts is not"),
        ({"n_group": 7}, "n_group 7 does not divide"),
        ({"topk_group": 9}, "topk_group 9 exceeds"),
        ({"topk_method": "noaux_tc"}, "noaux_tc.*softmax.*deepseek_v2: it has greedy with softmax or group"),
        ({"topk_method": "greedy"}, "n_group 8 is set, but topk_method greedy"),
        ({"topk_method": "noaux_tc", "scoring_func": "sigmoid"}, "is not a deepseek_v2"),
        ({"rope_theta": 1.0}, "rope_theta must be above 1"),
        ({"rope_theta": 10**400}, "rope_theta: an integer of 1329 bits is not a finite number"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor: float nan is not a finite"),
        ({"routed_scaling_factor": -1.0}, "routed_scaling_factor above 0"),
        ({"rope_scaling": PUBLISHED_V2["rope_scaling"] | {"factor": float("inf")}}, "factor: float inf"),
        ({"n_routed_experts": None, "num_experts_per_tok": None}, "is set but n_routed_experts is not"),
        ({"topk_method": "best"}, "'best' is not one of"),
        ({"eos_token_id": 102400}, "outside vocab_size"),
        ({"eos_token_id": ["a"]}, r"eos_token_id\[0\]"),
        ({"rope_scaling": "yarn"}, "rope_scaling: expected a table"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 40}}, "original_max_position_embeddings"),
        ({"rope_scaling": PUBLISHED_V2["rope_scaling"] | {"mscale": None}}, "together or not at all"),
        ({"rope_scaling": PUBLISHED_V2["rope_scaling"] | {"scale": 2}}, "unknown field 'scale'"),
        ({"rope_scaling": PUBLISHED_V2["rope_scaling"] | {"rope_type": "linear"}}, "contradicts"),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, "rope_theta 10000 contradicts"),
    ],
)
def test_a_bad_field_is_named(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        from_hf(PUBLISHED_V2 | changes, "config.json")
    assert str(caught.value).startswith("config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 5}, "multiple of"),
        ({"kv_lora_rank": 512}, "kv_lora_rank does not apply"),
        ({"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8}, "n_routed_experts does not"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"norm_topk_prob": True}, "norm_topk_prob is set but n_routed_experts is not"),
        ({"scoring_func": "sigmoid"}, "scoring_func is set"),
        ({"routed_scaling_factor": 16.0}, "routed_scaling_factor is set"),
        ({"n_group": 2}, "n_group is set"),
    ],
)
def test_a_bad_llama_field_is_named(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_hf(to_hf(preset("smollm2-135m")) | changes, "config.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "not valid JSON"), (b"[1]", "JSON object"), (b"\xff\xfe{}", "not valid JSON"), (b"{}", "model_type")],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_config(path)
    assert "config.json" in str(caught.value)
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "other.json")


def test_experts_stand_in_every_so_many_layers() -> None:
    config = from_hf(PUBLISHED_V2 | {"moe_layer_freq": 3, "first_k_dense_replace": 4, "num_hidden_layers": 12}, "v2")
    assert [layer for layer in range(12) if config.is_moe_layer(layer)] == [6, 9]


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'deepseek-v2-lite'"):
        preset("deepseek-v2-light")
