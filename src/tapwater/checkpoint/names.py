"""How our parameter names and Hugging Face's correspond.

Ours are Hugging Face's without `model.`, but routed experts are stacked into one tensor per projection, and a
multi-token-prediction module is stored as a layer after the last one, beside copies of the embedding and the head.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tapwater.config import ModelConfig
from tapwater.model import Transformer

_EXPERTS = re.compile(r"(.*\.experts)\.(gate_proj|up_proj|down_proj)")
_MTP = re.compile(r"mtp\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Entry:
    """One of our tensors: its name, shape and dtype rule, and the Hugging Face tensors it is made of.

    A stack has one of `hf_names` for each index of its first dimension. `always_float32` marks what published
    checkpoints of any dtype keep in float32.
    """

    name: str
    shape: tuple[int, ...]
    hf_names: tuple[str, ...]
    always_float32: bool = False

    @property
    def is_stack(self) -> bool:
        return len(self.shape) == 3  # routed experts, be it a single one

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.is_stack else self.shape


def layout(model: Transformer) -> Iterator[Entry]:
    """Every tensor of a (possibly meta) model; tied weights once."""
    config = model.config
    for name, parameter in model.named_parameters():
        yield Entry(name, tuple(parameter.shape), _hf_names(name, config))
    for name, buffer in model.named_buffers():
        yield Entry(name, tuple(buffer.shape), _hf_names(name, config), always_float32=True)


def shared_copies(config: ModelConfig) -> dict[str, str]:
    """Hugging Face names of the copies a multi-token-prediction layer carries, and what each must equal."""
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    copies = {}
    for depth in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{config.num_hidden_layers + depth}"
        copies[f"{prefix}.embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"{prefix}.shared_head.head.weight"] = head
    return copies


def meta_model(config: ModelConfig) -> Transformer:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return Transformer(config)


def _hf_names(name: str, config: ModelConfig) -> tuple[str, ...]:
    if match := _MTP.fullmatch(name):
        depth, rest = int(match[1]), match[2]
        rest = rest.removeprefix("block.")
        rest = "shared_head.norm.weight" if rest == "norm.weight" else rest
        name = f"layers.{config.num_hidden_layers + depth}.{rest}"
    if match := _EXPERTS.fullmatch(name):
        experts = range(config.moe.n_routed_experts)
        return tuple(f"model.{match[1]}.{expert}.{match[2]}.weight" for expert in experts)
    return (name,) if name.startswith("lm_head.") else (f"model.{name}",)
