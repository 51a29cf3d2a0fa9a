"""A packed model and a step of it as csrc/model.h describes them, field by field."""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from tapwater.config import ModelConfig
from tapwater.ops.native import Matrix, matrix
from tapwater.ops.quant import PackedWeight

_number, _pointer, _real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double

# C field -> the weight's name within a layer
_VECTORS = {
    "input_norm": "input_layernorm.weight",
    "post_attention_norm": "post_attention_layernorm.weight",
    "q_a_norm": "self_attn.q_a_layernorm.weight",
    "kv_a_norm": "self_attn.kv_a_layernorm.weight",
    "router": "mlp.gate.weight",
    "router_bias": "mlp.gate.e_score_correction_bias",
}
_MATRICES = {
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_a": "self_attn.q_a_proj.weight",
    "q_b": "self_attn.q_b_proj.weight",
    "kv_a": "self_attn.kv_a_proj_with_mqa.weight",
    "key_up": "self_attn.key_up",
    "kv_key": "self_attn.kv_b_key",
    "kv_value": "self_attn.kv_b_value",
    "expert_gate": "mlp.experts.gate_proj",
    "expert_up": "mlp.experts.up_proj",
    "expert_down": "mlp.experts.down_proj",
}
_SHARED = {name: f"mlp.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")}
_DENSE = {name: f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}


class _GateRule(ctypes.Structure):
    _fields_ = [
        *((name, _number) for name in ("experts", "chosen", "groups", "chosen_groups", "sigmoid", "normalise")),
        ("scaling", _real),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("input_norm", "post_attention_norm")),
        *((name, Matrix) for name in ("q", "k", "v", "o", "q_a", "q_b", "kv_a", "key_up", "kv_key", "kv_value")),
        *((name, _pointer) for name in ("q_a_norm", "kv_a_norm")),
        *((name, Matrix) for name in ("gate", "up", "down", "expert_gate", "expert_up", "expert_down")),
        *((name, _pointer) for name in ("router", "router_bias")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _number) for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")),
        *((name, _number) for name in ("kv_lora_rank", "nope", "rope", "value")),
        *((name, _real) for name in ("eps", "latent_eps", "softmax_scale")),
        ("gate_rule", _GateRule),
        ("layers", ctypes.POINTER(_Layer)),
        ("embedding", Matrix),
        ("head", Matrix),
        ("norm", _pointer),
        ("positions", _number),
        *((name, _pointer) for name in ("cos", "sin")),
    ]


class Step(ctypes.Structure):
    """tw::Step: pointers are addresses of memory that lives until the call returns."""

    _fields_ = [
        ("tokens", _number),
        *((name, _pointer) for name in ("token_ids", "positions", "slots")),
        *((name, _number) for name in ("requests", "absorbed")),
        *((name, _pointer) for name in ("query_lengths", "context_lengths", "page_table")),
        ("pages_per_request", _number),
        ("pages", _pointer),
        *((name, _number) for name in ("num_pages", "page_size", "entry_bytes", "layer_bytes")),
        ("cache_format", ctypes.c_int32),
    ]


class NativeModel:
    """The structures of one model; keeps what they point at alive."""

    def __init__(
        self,
        config: ModelConfig,
        matrices: Mapping[str, PackedWeight],
        tensors: Mapping[str, Tensor],
        softmax_scale: float,
        latent_eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        self._alive = (matrices, tensors, cos, sin)
        layers = (_Layer * config.num_hidden_layers)()
        for index, layer in enumerate(layers):
            _fill_layer(layer, f"layers.{index}.", matrices, tensors)
        embedding = matrices["embed_tokens.weight"]
        self.struct = _Model(
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            layers=layers,
            eps=config.rms_norm_eps,
            latent_eps=latent_eps,
            softmax_scale=softmax_scale,
            embedding=matrix(embedding),
            head=matrix(embedding if config.tie_word_embeddings else matrices["lm_head.weight"]),
            norm=_address(tensors["norm.weight"]),
            positions=cos.shape[0],
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
        )
        if config.is_mla:
            mla = config.mla
            self.struct.kv_lora_rank, self.struct.value = mla.kv_lora_rank, mla.v_head_dim
            self.struct.nope, self.struct.rope = mla.qk_nope_head_dim, mla.qk_rope_head_dim
        else:
            self.struct.num_kv_heads, self.struct.head_dim = config.num_key_value_heads, config.attention_head_dim
        if config.is_moe:
            moe = config.moe
            grouped = config.topk_method != "greedy"
            self.struct.gate_rule = _GateRule(
                moe.n_routed_experts,
                moe.num_experts_per_tok,
                moe.n_group if grouped else 1,
                moe.topk_group if grouped else 1,
                config.topk_method == "noaux_tc",
                config.norm_topk_prob,
                config.routed_scaling_factor,
            )


def _fill_layer(
    layer: _Layer, prefix: str, matrices: Mapping[str, PackedWeight], tensors: Mapping[str, Tensor]
) -> None:
    for field, name in _VECTORS.items():
        if prefix + name in tensors:
            setattr(layer, field, _address(tensors[prefix + name]))
    feed_forward = _DENSE if prefix + _DENSE["gate"] in matrices else _SHARED
    for field, name in (_MATRICES | feed_forward).items():
        if prefix + name in matrices:
            setattr(layer, field, matrix(matrices[prefix + name]))


def _address(tensor: Tensor) -> int:
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise ValueError(f"norms and gates must be contiguous float32, got {tensor.dtype}")
    return tensor.data_ptr()
