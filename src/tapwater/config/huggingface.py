"""Read and write Hugging Face's config.json for the four architectures, honouring or refusing every key."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tapwater.config.model import EXPERT_FIELDS, MLA_FIELDS, ModelConfig, RopeScaling, to_plain
from tapwater.config.parse import from_mapping, nearest
from tapwater.errors import ConfigError

# Keys that describe files, tooling or generation, never the function the weights compute.
BOOKKEEPING = frozenset(
    (
        *("architectures", "auto_map", "transformers_version", "_name_or_path", "_attn_implementation_autoset"),
        *("torch_dtype", "dtype", "quantization_config", "use_cache", "pad_token_id", "problem_type", "return_dict"),
        *("id2label", "label2id", "output_attentions", "output_hidden_states", "output_router_logits"),
        *("chunk_size_feed_forward", "is_encoder_decoder", "is_llama_config", "transformers.js_config"),
        *("aux_loss_alpha", "seq_aux"),  # of the training run that made the weights; ours are told by BalanceConfig
    )
)
# `quantization_config` says how tensors are stored, so checkpoint/hf.py honours or refuses it, not the architecture.

# Keys with one supported value: any other would compute something else.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "ep_size": 1,
    "rope_interleaved": False,  # written by SmolLM2's training code for plain half-split RoPE
    "rope_interleave": True,  # deepseek_v3 in transformers: pairs are interleaved, as in every DeepSeek checkpoint
}


def read_config(path: Path) -> ModelConfig:
    """The ModelConfig of a `config.json` file; ConfigError when it is missing, not JSON or not of this family."""
    return from_hf(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConfigError naming the file, and the line where the syntax breaks."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # syntax, encoding, numbers or nesting beyond what Python reads
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """ModelConfig from the keys of a config.json; `where` names the source in errors.

    Accepts the spelling of published checkpoints (`rope_theta`, `rope_scaling`) and of transformers 5
    (`rope_parameters`). Raises ConfigError for a key that is unknown, unsupported or contradicts another.
    """
    known = {field.name for field in fields(ModelConfig)}
    model_type = raw.get("model_type")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in FIXED:
            if value is not None and value != FIXED[key]:
                raise ConfigError(f"{where}: {key} = {value!r} is not supported, only {FIXED[key]!r}")
        elif key in known:
            values[key] = value
        elif key not in BOOKKEEPING and key not in ("rope_parameters", "qk_head_dim"):
            raise ConfigError(f"{where}: unknown field {key!r}{nearest(key, sorted(known))}")
    values |= _rope(raw, where)
    if isinstance(model_type, str) and model_type.startswith("deepseek_v"):
        _drop_mla_restatements(raw, values, where)
    if model_type == "deepseek_v3" and raw.get("n_routed_experts"):
        # transformers leaves out what the architecture fixes
        values = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True} | values
    if raw.get("num_key_value_heads") is None and "num_attention_heads" in raw:
        values["num_key_value_heads"] = raw["num_attention_heads"]
    values = {key: value for key, value in values.items() if value is not None}
    return from_mapping(ModelConfig, values, where)


def to_hf(config: ModelConfig, dtype: str | None = None) -> dict[str, Any]:
    """The config.json of `config` in the spelling of published DeepSeek and Llama checkpoints."""
    plain = to_plain(config)
    # What is absent must be said where transformers would fill in a default of its own.
    if config.is_mla:
        plain["q_lora_rank"] = config.q_lora_rank
    if config.is_moe:
        plain |= {name: getattr(config, name) for name in ("n_shared_experts", "n_group", "topk_group")}
        plain["n_shared_experts"] = config.n_shared_experts or 0
    else:
        plain = {name: value for name, value in plain.items() if name not in EXPERT_FIELDS}
    if config.rope_scaling:
        plain["rope_scaling"]["type"] = plain["rope_scaling"].pop("rope_type")
    architecture = {
        "llama": "LlamaForCausalLM",
        "deepseek": "DeepseekForCausalLM",
        "deepseek_v2": "DeepseekV2ForCausalLM",
        "deepseek_v3": "DeepseekV3ForCausalLM",
    }[config.model_type]
    constants = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "use_cache": True}
    written = {"architectures": [architecture], **plain, **constants}
    return written | ({"torch_dtype": dtype} if dtype else {})


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from either spelling; both spellings together must agree."""
    parameters = raw.get("rope_parameters")
    scaling = raw.get("rope_scaling")
    found: dict[str, Any] = {}
    if parameters is not None:
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"{where}: rope_parameters: expected a table, got {parameters!r}")
        rest = dict(parameters)
        theta = rest.pop("rope_theta", None)
        if theta is not None:
            if raw.get("rope_theta") not in (None, theta):
                raise ConfigError(f"{where}: rope_theta {raw['rope_theta']} contradicts rope_parameters {theta}")
            found["rope_theta"] = theta
        restated = _rope_scaling(rest, f"{where}: rope_parameters")
        if scaling is not None and _rope_scaling(scaling, f"{where}: rope_scaling") != restated:
            raise ConfigError(f"{where}: rope_scaling contradicts rope_parameters")
        found["rope_scaling"] = restated
    elif scaling is not None:
        found["rope_scaling"] = _rope_scaling(scaling, f"{where}: rope_scaling")
    return found


def _rope_scaling(raw: Any, where: str) -> RopeScaling | None:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected a table, got {raw!r}")
    rest = {key: value for key, value in raw.items() if value is not None}
    old, new = rest.pop("type", None), rest.pop("rope_type", None)
    if old and new and old != new:
        raise ConfigError(f"{where}: type {old!r} contradicts rope_type {new!r}")
    kind = new or old or "default"
    if kind == "default":
        if rest:
            raise ConfigError(f"{where}: {sorted(rest)} given for rope_type 'default', which takes none")
        return None
    if kind != "yarn":
        raise ConfigError(f"{where}: rope_type {kind!r} is not supported, only 'default' and 'yarn'")
    return from_mapping(RopeScaling, {"rope_type": "yarn", **rest}, where)


def _drop_mla_restatements(raw: Mapping[str, Any], values: dict[str, Any], where: str) -> None:
    """transformers writes `head_dim` (= qk_rope_head_dim) and `qk_head_dim` for MLA; they carry nothing new."""
    sizes = {name: raw.get(name) for name in MLA_FIELDS}
    if not all(isinstance(size, int) for size in sizes.values()):
        return  # reported as missing or mistyped by ModelConfig
    nope, rope = sizes["qk_nope_head_dim"], sizes["qk_rope_head_dim"]
    for name, expected in (("head_dim", rope), ("qk_head_dim", nope + rope)):  # pyrefly: ignore
        if raw.get(name) not in (None, expected):
            raise ConfigError(f"{where}: {name} {raw[name]} contradicts qk_nope_head_dim {nope} and qk_rope {rope}")
    values.pop("head_dim", None)
