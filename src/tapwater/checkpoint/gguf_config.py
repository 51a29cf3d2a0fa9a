"""What a GGUF file's metadata says about the model: llama.cpp's keys read into a ModelConfig, none ignored."""

from decimal import Decimal
from typing import Any

from tapwater.checkpoint.gguf_container import GgufContainer
from tapwater.checkpoint.gguf_fields import Fields
from tapwater.config import ModelConfig, RopeScaling, preset
from tapwater.config.parse import from_mapping
from tapwater.errors import CheckpointError, ConfigError

GATING_FUNCTIONS = {1: "softmax", 2: "sigmoid"}
QUANTIZATION_VERSION = 2
# The published models whose files were mostly written before llama.cpp stored expert groups (`_groups`).
PUBLISHED_MOE = ("deepseek-v2", "deepseek-v2-lite", "deepseek-v3")
SIZES = ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "n_routed_experts", "n_shared_experts")
SIZES += ("num_hidden_layers", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace", "scoring_func")


def model_config(container: GgufContainer) -> ModelConfig:
    """The architecture of a `llama` or `deepseek2` file.

    Raises CheckpointError, naming the key, for another architecture and for metadata that is missing, contradictory,
    or unknown and so able to change what the weights compute.
    """
    general = Fields(container, "general.")
    general.expect("type", str, "model")
    general.expect("quantization_version", int, QUANTIZATION_VERSION)
    split = Fields(container, "split.")
    if (parts := split.get("count", int, 1)) > 1:
        raise split.error("count", f"= {parts}: this is one part of several; join them with `llama-gguf-split --merge`")
    architecture = general.need("architecture", str)
    if architecture == "llama":
        fields = Fields(container, "llama.")
        values = _llama(fields)
    elif architecture == "deepseek2":
        fields = Fields(container, "deepseek2.")
        values = _deepseek2(fields)
    else:
        raise general.error("architecture", f"= {architecture!r} is not supported, only 'llama' and 'deepseek2'")
    fields.refuse_rest()
    try:
        return from_mapping(ModelConfig, values, str(container.path))
    except ConfigError as error:
        message = str(error)
        where = "" if message.startswith(str(container.path)) else f"{container.path}: "
        raise CheckpointError(where + message) from None


def _common(fields: Fields) -> dict[str, Any]:
    metadata, tensors = fields.container.metadata, fields.container.tensors
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{fields.container.path}: tensor token_embd.weight is missing")
    vocab_size = tensors["token_embd.weight"].shape[0]
    fields.expect("vocab_size", int, vocab_size)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != vocab_size:
        raise CheckpointError(
            f"{fields.container.path}: tokenizer.ggml.tokens lists {len(tokens)} tokens, token_embd.weight has "
            f"{vocab_size} rows"
        )
    return {
        "vocab_size": vocab_size,
        "hidden_size": fields.need("embedding_length", int),
        "intermediate_size": fields.need("feed_forward_length", int),
        "num_attention_heads": fields.need("attention.head_count", int),
        "max_position_embeddings": fields.need("context_length", int),
        "rms_norm_eps": fields.need("attention.layer_norm_rms_epsilon", float),
        "rope_theta": fields.get("rope.freq_base", float, 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        **_special_tokens(fields.container),
    }


def _special_tokens(container: GgufContainer) -> dict[str, Any]:
    """BOS, and what ends an answer: the end of a text, of a turn, of a message (Llama-3 tells the three apart)."""
    fields = Fields(container, "tokenizer.ggml.")
    ends = [fields.get(f"{end}_token_id", int) for end in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": fields.get("bos_token_id", int),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }


def _llama(fields: Fields) -> dict[str, Any]:
    if "rope_freqs.weight" in fields.container.tensors:
        raise CheckpointError(
            f"{fields.container.path}: tensor rope_freqs.weight means Llama-3.1's rope scaling, which is not supported"
        )
    fields.expect("rope.scaling.type", str, "none")
    fields.expect("expert_count", int, 0)
    fields.expect("expert_used_count", int, 0)
    values = _common(fields)
    heads, hidden_size = values["num_attention_heads"], values["hidden_size"]
    head_dim = fields.get("attention.key_length", int)
    if head_dim is None and heads > 0:
        head_dim = hidden_size // heads
    fields.expect("attention.value_length", int, head_dim)
    fields.expect("rope.dimension_count", int, head_dim)
    return values | {
        "model_type": "llama",
        "num_hidden_layers": fields.need("block_count", int),
        "num_key_value_heads": fields.get("attention.head_count_kv", int, heads),
        "head_dim": head_dim if head_dim and head_dim * heads != hidden_size else None,
    }


def _deepseek2(fields: Fields) -> dict[str, Any]:
    values = _common(fields)
    prediction_layers = fields.get("nextn_predict_layers", int, 0)
    values |= {
        "num_hidden_layers": fields.need("block_count", int) - prediction_layers,
        "num_nextn_predict_layers": prediction_layers,
        "num_key_value_heads": values["num_attention_heads"],
        "rope_scaling": _yarn(fields),
        **_latent_attention(fields, values["num_attention_heads"]),
        **_experts(fields),
    }
    values["model_type"] = "deepseek_v3" if values["scoring_func"] == "sigmoid" else "deepseek_v2"
    if values["n_routed_experts"]:
        values["n_group"], values["topk_group"] = _groups(fields, values)
        grouped = "group_limited_greedy" if values["n_group"] > 1 else "greedy"
        values["topk_method"] = "noaux_tc" if values["scoring_func"] == "sigmoid" else grouped
    return values


def _latent_attention(fields: Fields, heads: int) -> dict[str, Any]:
    """Two generations: older files describe the expanded heads, newer ones the absorbed head and, as `_mla`, these."""
    rank, rope = fields.need("attention.kv_lora_rank", int), fields.need("rope.dimension_count", int)
    absorbed = "attention.key_length_mla"
    if fields.get(absorbed, int) is None:
        qk_head_dim, v_head_dim = fields.need("attention.key_length", int), fields.need("attention.value_length", int)
        fields.expect("attention.head_count_kv", int, heads)
    else:
        qk_head_dim, v_head_dim = fields.need(absorbed, int), fields.need("attention.value_length_mla", int)
        fields.expect("attention.key_length", int, rank + rope)
        fields.expect("attention.value_length", int, rank)
        fields.expect("attention.head_count_kv", int, 1)
    return {
        "q_lora_rank": fields.get("attention.q_lora_rank", int),
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": qk_head_dim - rope,
        "v_head_dim": v_head_dim,
    }


def _yarn(fields: Fields) -> RopeScaling | None:
    kind = fields.get("rope.scaling.type", str, "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise fields.error("rope.scaling.type", f"= {kind!r} is not supported, only 'yarn' and 'none'")
    fields.expect("rope.scaling.yarn_ext_factor", float, 1.0)
    fields.expect("rope.scaling.yarn_attn_factor", float, 1.0)
    # llama.cpp stores 0.1 * mscale_all_dim and takes mscale to be the same, as it is in every published checkpoint.
    key = "rope.scaling.yarn_log_multiplier"
    multiplier = fields.get(key, float)
    if multiplier is not None and multiplier <= 0:
        raise fields.error(key, f"is {multiplier}: mscale cannot be told from it")
    mscale = None if multiplier is None else float(10 * Decimal(str(multiplier)))
    try:
        return RopeScaling(
            rope_type="yarn",
            factor=fields.need("rope.scaling.factor", float),
            original_max_position_embeddings=fields.need("rope.scaling.original_context_length", int),
            beta_fast=fields.get("rope.scaling.yarn_beta_fast", float, 32.0),
            beta_slow=fields.get("rope.scaling.yarn_beta_slow", float, 1.0),
            mscale=mscale,
            mscale_all_dim=mscale,
        )
    except ConfigError as error:
        raise fields.error("rope.scaling", f"is impossible: {error}") from None


def _experts(fields: Fields) -> dict[str, Any]:
    count = fields.get("expert_count", int, 0)
    dense_layers = fields.get("leading_dense_block_count", int, 0)
    width, shared = fields.get("expert_feed_forward_length", int), fields.get("expert_shared_count", int, 0)
    scale = fields.get("expert_weights_scale", float, 1.0)
    normalised = fields.get("expert_weights_norm", bool, False)
    if count == 0:  # every layer is dense, whatever expert fields the converter wrote
        fields.ignore("expert_used_count expert_gating_func expert_group_count expert_group_used_count")
        return {"n_routed_experts": None, "scoring_func": "softmax"}
    if scale <= 0:
        raise fields.error("expert_weights_scale", f"is {scale}, expected a positive number")
    return {
        "n_routed_experts": count,
        "n_shared_experts": shared,
        "num_experts_per_tok": fields.need("expert_used_count", int),
        "moe_intermediate_size": width,
        "first_k_dense_replace": dense_layers,
        "routed_scaling_factor": scale,
        "norm_topk_prob": normalised,
        "scoring_func": _scoring_function(fields),
    }


def _scoring_function(fields: Fields) -> str:
    code = fields.get("expert_gating_func", int)
    if code is None:  # written before sigmoid gates existed, unless there is the bias that only they have
        if any(name.endswith(".exp_probs_b.bias") for name in fields.container.tensors):
            raise fields.error("expert_gating_func", "is missing, though the gates have a bias (exp_probs_b)")
        return "softmax"
    if code not in GATING_FUNCTIONS:
        raise fields.error("expert_gating_func", f"= {code} is not supported, only {GATING_FUNCTIONS}")
    return GATING_FUNCTIONS[code]


def _groups(fields: Fields, values: dict[str, Any]) -> tuple[int, int]:
    """`n_group` and `topk_group`, which llama.cpp did not store before the end of 2025.

    A file without them is a published model if it has all its sizes. What else it might be cannot be told: routing
    without groups would compute another model, silently.
    """
    groups, used = fields.get("expert_group_count", int), fields.get("expert_group_used_count", int)
    if groups is not None:
        return groups, fields.need("expert_group_used_count", int)
    if used is None:
        for name in PUBLISHED_MOE:
            published = preset(name)
            if all(getattr(published, size) == values[size] for size in SIZES):
                return published.moe.n_group, published.moe.topk_group
    raise fields.error(
        "expert_group_count",
        "is missing and the sizes are of no published model, so the expert groups cannot be told; convert it again "
        "with a current llama.cpp and n_group in config.json",
    )
