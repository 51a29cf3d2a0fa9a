"""GGUF files of the family as published checkpoints: their tensors under Hugging Face's names, config, tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tapwater.checkpoint.gguf_blocks import Steps
from tapwater.checkpoint.gguf_config import model_config
from tapwater.checkpoint.gguf_container import GgufContainer
from tapwater.checkpoint.gguf_header import read_container
from tapwater.checkpoint.gguf_tokenizer import read_tokenizer
from tapwater.config import ModelConfig
from tapwater.errors import CheckpointError
from tapwater.text import Tokenizer

PROJECTIONS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


class GgufFile:
    """A `llama` or `deepseek2` GGUF file as a TensorSource; opening reads its header, `read` one tensor.

    Raises CheckpointError, naming file and place, for a file that is missing, truncated, damaged or unsupported, and
    for tensors that are missing, unexpected or contradict the metadata.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.files = (path,)
        self._container = read_container(path)
        self.config: ModelConfig = model_config(self._container)
        self._sources = _sources(self._container, self.config)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor by Hugging Face name; tied heads are not listed, stacked experts one by one."""
        return {name: source.shape for name, source in self._sources.items()}

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own: float32, or float16/bfloat16 if it is stored so."""
        if name not in self._sources:
            raise CheckpointError(f"{self.where}: has no tensor for {name}")
        return self._sources[name].read()

    def kinds(self, name: str) -> tuple[str, ...]:
        """The type a tensor is stored in, as GGUF calls it (Q4_K, F16); one of each tensor if it is several there."""
        return self._sources[name].kinds

    def steps(self, name: str) -> Steps | None:
        """A matrix as the integers it is stored in, no floats in between; None if our formats do not hold them."""
        return self._sources[name].steps()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the metadata; CheckpointError if there is none or it is of an unknown kind."""
        return read_tokenizer(self._container, self.config)


@dataclass(frozen=True)
class _Source:
    shape: tuple[int, ...]
    kinds: tuple[str, ...]
    read: Callable[[], Tensor]
    steps: Callable[[], Steps | None]


class _Layout:
    """Published tensors as they are claimed from stored ones; what nothing claims is refused at the end."""

    def __init__(self, container: GgufContainer) -> None:
        self.container = container
        self.sources: dict[str, _Source] = {}
        self._unclaimed = set(container.tensors)

    def claim(self, stored: str, *shape: int) -> str:
        """Check that tensor `stored` exists with `shape`."""
        if stored not in self.container.tensors:
            raise CheckpointError(f"{self.container.path}: tensor {stored} is missing")
        found = self.container.tensors[stored].shape
        if found != shape:
            raise CheckpointError(
                f"{self.container.path}: tensor {stored} has shape {list(found)}, the metadata says {list(shape)}"
            )
        self._unclaimed.discard(stored)
        return stored

    def add(self, published: str, stored: str, *shape: int) -> None:
        self.claim(stored, *shape)
        read, steps = partial(self.container.read, stored), partial(self.container.steps, stored)
        self.sources[published] = _Source(shape, self._kinds(stored), read, steps)

    def add_rotary(self, published: str, stored: str, heads: int, *shape: int) -> None:
        """Query or key rows of a llama file, where RoPE's two halves of a head are interleaved."""
        self.claim(stored, *shape)
        read = partial(_halves_of_values, self.container, stored, heads)
        steps = partial(_halves_of_steps, self.container, stored, heads)
        self.sources[published] = _Source(shape, self._kinds(stored), read, steps)

    def add_stacked(self, published: str, stored: str, count: int, *shape: int) -> None:
        """`count` tensors stored as one; `published` has a {} for the index."""
        self.claim(stored, count, *shape)
        for index in range(count):
            read = partial(self.container.read_part, stored, index)
            steps = partial(self.container.steps, stored, index)
            self.sources[published.format(index)] = _Source(shape, self._kinds(stored), read, steps)

    def add_joined(self, published: str, k_b: str, v_b: str, *shape: int) -> None:
        """kv_b_proj from its two halves; keys are stored transposed, so their integers are of no use."""
        read = partial(_joined, self.container, k_b, v_b)
        self.sources[published] = _Source(shape, self._kinds(k_b, v_b), read, lambda: None)

    def _kinds(self, *stored: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.container.tensors[name].kind.name for name in stored))

    def refuse_rest(self) -> None:
        if self._unclaimed:
            first, *others = sorted(self._unclaimed)
            more = f" and {len(others)} more" if others else ""
            raise CheckpointError(
                f"{self.container.path}: unexpected tensor {first}{more}; the model has no use for it"
            )


def _sources(container: GgufContainer, config: ModelConfig) -> Mapping[str, _Source]:
    layout = _Layout(container)
    layout.add("model.embed_tokens.weight", "token_embd.weight", config.vocab_size, config.hidden_size)
    for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        if config.is_mla:
            _latent_attention(layout, config, layer)
        else:
            _grouped_attention(layout, config, layer)
        _feed_forward(layout, config, layer)
    layout.add("model.norm.weight", "output_norm.weight", config.hidden_size)
    if not config.tie_word_embeddings:
        layout.add("lm_head.weight", "output.weight", config.vocab_size, config.hidden_size)
    for layer in range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers):
        _prediction(layout, config, layer)
    layout.refuse_rest()
    return layout.sources


def _grouped_attention(layout: _Layout, config: ModelConfig, layer: int) -> None:
    published, stored, D = f"model.layers.{layer}.self_attn.", f"blk.{layer}.", config.hidden_size
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.attention_head_dim
    layout.add_rotary(f"{published}q_proj.weight", f"{stored}attn_q.weight", heads, heads * head_dim, D)
    layout.add_rotary(f"{published}k_proj.weight", f"{stored}attn_k.weight", kv_heads, kv_heads * head_dim, D)
    layout.add(f"{published}v_proj.weight", f"{stored}attn_v.weight", kv_heads * head_dim, D)
    layout.add(f"{published}o_proj.weight", f"{stored}attn_output.weight", D, heads * head_dim)


def _latent_attention(layout: _Layout, config: ModelConfig, layer: int) -> None:
    published, stored = f"model.layers.{layer}.self_attn.", f"blk.{layer}."
    D, H, Q, mla = config.hidden_size, config.num_attention_heads, config.q_lora_rank, config.mla
    C, N, R, V = mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim
    if Q is None:
        layout.add(f"{published}q_proj.weight", f"{stored}attn_q.weight", H * (N + R), D)
    else:
        layout.add(f"{published}q_a_proj.weight", f"{stored}attn_q_a.weight", Q, D)
        layout.add(f"{published}q_a_layernorm.weight", f"{stored}attn_q_a_norm.weight", Q)
        layout.add(f"{published}q_b_proj.weight", f"{stored}attn_q_b.weight", H * (N + R), Q)
    layout.add(f"{published}kv_a_proj_with_mqa.weight", f"{stored}attn_kv_a_mqa.weight", C + R, D)
    layout.add(f"{published}kv_a_layernorm.weight", f"{stored}attn_kv_a_norm.weight", C)
    kv_b, shape = f"{published}kv_b_proj.weight", (H * (N + V), C)
    if f"{stored}attn_k_b.weight" in layout.container.tensors:
        k_b = layout.claim(f"{stored}attn_k_b.weight", H, C, N)
        v_b = layout.claim(f"{stored}attn_v_b.weight", H, V, C)
        layout.add_joined(kv_b, k_b, v_b, *shape)
    else:
        layout.add(kv_b, f"{stored}attn_kv_b.weight", *shape)
    layout.add(f"{published}o_proj.weight", f"{stored}attn_output.weight", D, H * V)


def _feed_forward(layout: _Layout, config: ModelConfig, layer: int) -> None:
    """The two norms and the dense or expert part of a layer."""
    published, stored, D = f"model.layers.{layer}.", f"blk.{layer}.", config.hidden_size
    layout.add(f"{published}input_layernorm.weight", f"{stored}attn_norm.weight", D)
    layout.add(f"{published}post_attention_layernorm.weight", f"{stored}ffn_norm.weight", D)
    if not config.is_moe_layer(layer):
        _mlp(layout, f"{published}mlp", f"{stored}ffn_{{}}.weight", D, config.intermediate_size)
        return
    E, F, shared = config.moe.n_routed_experts, config.moe.moe_intermediate_size, config.moe.n_shared_experts
    layout.add(f"{published}mlp.gate.weight", f"{stored}ffn_gate_inp.weight", E, D)
    if config.topk_method == "noaux_tc":
        layout.add(f"{published}mlp.gate.e_score_correction_bias", f"{stored}exp_probs_b.bias", E)
    for projection, name in PROJECTIONS.items():
        shape = (D, F) if name == "down" else (F, D)
        experts = f"{published}mlp.experts.{{}}.{projection}.weight"
        layout.add_stacked(experts, f"{stored}ffn_{name}_exps.weight", E, *shape)
    if shared:
        _mlp(layout, f"{published}mlp.shared_experts", f"{stored}ffn_{{}}_shexp.weight", D, shared * F)


def _mlp(layout: _Layout, published: str, stored: str, D: int, width: int) -> None:
    for projection, name in PROJECTIONS.items():
        shape = (D, width) if name == "down" else (width, D)
        layout.add(f"{published}.{projection}.weight", stored.format(name), *shape)


def _prediction(layout: _Layout, config: ModelConfig, layer: int) -> None:
    """What a multi-token-prediction layer has besides its block; the copies a file leaves out are the model's own."""
    published, stored = f"model.layers.{layer}.", f"blk.{layer}.nextn."
    W, D = config.vocab_size, config.hidden_size
    layout.add(f"{published}enorm.weight", f"{stored}enorm.weight", D)
    layout.add(f"{published}hnorm.weight", f"{stored}hnorm.weight", D)
    layout.add(f"{published}eh_proj.weight", f"{stored}eh_proj.weight", D, 2 * D)
    layout.add(f"{published}shared_head.norm.weight", f"{stored}shared_head_norm.weight", D)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    copies = {
        "embed_tokens": ("embed_tokens", "model.embed_tokens.weight"),
        "shared_head.head": ("shared_head_head", head),
    }
    for name, (copy, original) in copies.items():
        if f"{stored}{copy}.weight" in layout.container.tensors:
            layout.add(f"{published}{name}.weight", f"{stored}{copy}.weight", W, D)
        else:
            layout.sources[f"{published}{name}.weight"] = layout.sources[original]


def _halves_of_values(container: GgufContainer, stored: str, heads: int) -> Tensor:
    return _halves(container.read(stored), heads)


def _halves_of_steps(container: GgufContainer, stored: str, heads: int) -> Steps | None:
    steps = container.steps(stored)
    if steps is None:
        return None
    minimum_OG = None if steps.minimum_OG is None else _halves(steps.minimum_OG, heads)
    return Steps(steps.format, _halves(steps.q_OI, heads), _halves(steps.scale_OG, heads), minimum_OG)


def _halves(rows: Tensor, heads: int) -> Tensor:
    """Hugging Face rotates the first half of a head against the second; llama.cpp stores the pairs side by side."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def _joined(container: GgufContainer, k_b: str, v_b: str) -> Tensor:
    """kv_b_proj from the halves of absorbed attention: per head the rows of keys, stored transposed, then of values."""
    keys_HNC, values_HVC = container.read(k_b).transpose(1, 2), container.read(v_b)
    return torch.cat([keys_HNC, values_HVC], dim=1).flatten(0, 1)
