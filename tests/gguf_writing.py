"""Writes GGUF files of transformers models the way llama.cpp's convert_hf_to_gguf.py does, for tests to read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType, quantize
from safetensors.torch import load_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

F32 = GGMLQuantizationType.F32
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "def main():\n    for index in range(1000):\n        print(index)\n",
    "Wasser aus dem Hahn ist günstig; l'eau du robinet aussi. It's I'll we've they're.",
    "今天天气很好，我们去公园散步吧。 かな カナ emoji 😀😀🚰 numbers 3.14159 and 2718 ½",
] * 3


@dataclass
class Published:
    """A model as Hugging Face publishes it: config.json and tensors, and the directory they lie in."""

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class Gguf:
    """What goes into a file; tests change it before writing. Tensors are float32 arrays, or (raw bytes, type)."""

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def write(self, path: Path, kind: GGMLQuantizationType = F32) -> Path:
        """Matrices become `kind`; vectors and the experts' gates stay float32, as in llama.cpp."""
        writer = GGUFWriter(path, self.architecture)
        for key, value in self.metadata.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                writer.add_key_value(key, value, GGUFValueType.get_type(value))
        for name, tensor in self.tensors.items():
            if isinstance(tensor, tuple):
                raw, raw_kind = tensor
            else:
                raw_kind = F32 if tensor.ndim == 1 or "ffn_gate_inp" in name else kind
                raw = quantize(tensor, raw_kind)
            writer.add_tensor(name, raw, raw_dtype=raw_kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def publish(model: nn.Module, directory: Path) -> Published:
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    return Published(directory, config, load_file(directory / "model.safetensors"))


def llama_gguf(published: Published, **metadata: Any) -> Gguf:
    config = published.config
    heads = config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    keys = _common_metadata(config) | {
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
    }
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    tensors = _top_tensors(published)
    for name, array in _layer_tensors(published):
        layer, _, rest = name.partition(".")
        stored = names[rest.removesuffix(".weight")]
        if stored in ("attn_q", "attn_k"):
            array = _interleaved(array, heads if stored == "attn_q" else kv_heads)
        tensors[f"blk.{layer}.{stored}.weight"] = array
    return Gguf("llama", _prefixed("llama", keys) | metadata, tensors)


def deepseek_gguf(published: Published, absorbed: bool = True, **metadata: Any) -> Gguf:
    """`absorbed` files split kv_b_proj for absorbed attention; before 2025 they kept it and described plain heads."""
    config = published.config
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, v_dim = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    keys = _common_metadata(config) | {
        "attention.kv_lora_rank": rank,
        "rope.dimension_count": rope,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_group_count": config.get("n_group") or 1,
        "expert_group_used_count": config.get("topk_group") or 1,
    }
    if config["q_lora_rank"]:
        keys["attention.q_lora_rank"] = config["q_lora_rank"]
    if config["model_type"] == "deepseek_v3":
        keys |= {"expert_gating_func": 2, "expert_weights_norm": config["norm_topk_prob"]}
    if absorbed:
        keys |= {"attention.head_count_kv": 1, "attention.key_length": rank + rope, "attention.value_length": rank}
        keys |= {"attention.key_length_mla": nope + rope, "attention.value_length_mla": v_dim}
    else:
        keys |= {"attention.head_count_kv": heads, "attention.key_length": nope + rope}
        keys |= {"attention.value_length": v_dim}
    names = {
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.q_a_proj.weight": "attn_q_a.weight",
        "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
        "self_attn.q_b_proj.weight": "attn_q_b.weight",
        "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
        "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
        "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "mlp.gate.weight": "ffn_gate_inp.weight",
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    }
    for projection in ("gate", "up", "down"):
        names[f"mlp.{projection}_proj.weight"] = f"ffn_{projection}.weight"
        names[f"mlp.shared_experts.{projection}_proj.weight"] = f"ffn_{projection}_shexp.weight"
    tensors = _top_tensors(published)
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in _layer_tensors(published):
        layer, _, rest = name.partition(".")
        if rest.startswith("mlp.experts."):
            _, _, index, projection, _ = rest.split(".")
            stacked = f"blk.{layer}.ffn_{projection.removesuffix('_proj')}_exps.weight"
            experts.setdefault(stacked, {})[int(index)] = array
        elif absorbed and rest == "self_attn.kv_b_proj.weight":
            per_head = array.reshape(heads, nope + v_dim, rank)
            tensors[f"blk.{layer}.attn_k_b.weight"] = np.ascontiguousarray(per_head[:, :nope].transpose(0, 2, 1))
            tensors[f"blk.{layer}.attn_v_b.weight"] = np.ascontiguousarray(per_head[:, nope:])
        else:
            tensors[f"blk.{layer}.{names[rest]}"] = array
    tensors |= {name: np.stack([parts[index] for index in sorted(parts)]) for name, parts in experts.items()}
    return Gguf("deepseek2", _prefixed("deepseek2", keys) | metadata, tensors)


def train_bpe(control: list[str], user_defined: list[str]) -> tokenizers.Tokenizer:
    """A small byte-level BPE of the usual kind, its special tokens first."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(token, normalized=False) for token in user_defined])
    return backend


def tokenizer_metadata(backend: tokenizers.Tokenizer, pre: str, padding: int = 0) -> dict[str, Any]:
    """The vocabulary of a byte-level BPE and `padding` rows of the embedding that are no tokens."""
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    added = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
    kinds = [
        TokenType.NORMAL if token not in added else TokenType.CONTROL if added[token] else TokenType.USER_DEFINED
        for token in tokens
    ]
    tokens += [f"[PAD{len(tokens) + index}]" for index in range(padding)]
    kinds += [TokenType.UNUSED] * padding
    merges = json.loads(backend.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def _common_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    keys = {
        "vocab_size": config["vocab_size"],
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": float(rope["beta_fast"]),
            "rope.scaling.yarn_beta_slow": float(rope["beta_slow"]),
        }
        if "mscale_all_dim" in rope:
            keys["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return keys


def _prefixed(architecture: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    ids = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
    return {"general.name": "tiny", **{f"{architecture}.{key}": value for key, value in keys.items()}, **ids}


def _top_tensors(published: Published) -> dict[str, np.ndarray]:
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not published.config["tie_word_embeddings"]:
        names["lm_head.weight"] = "output.weight"
    return {stored: published.tensors[name].numpy() for name, stored in names.items()}


def _layer_tensors(published: Published) -> list[tuple[str, np.ndarray]]:
    prefix = "model.layers."
    named = published.tensors.items()
    return [(name.removeprefix(prefix), tensor.numpy()) for name, tensor in named if name.startswith(prefix)]


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's halves of a head as llama.cpp's pairs."""
    halves = array.reshape(heads, 2, -1, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
