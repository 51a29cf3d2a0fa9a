"""Which arrays a packed model is made of.

They bear the names of Transformer's state dict, but for MLA's kv_b_proj: kernels multiply by W_UK from both sides, one
head at a time, so it becomes three stacks over heads: `key_up` (W_UK transposed, [C x N]: absorbed attention),
`kv_b_key` ([N x C]: expanded) and `kv_b_value` ([V x C]). Norms, gates and their biases stay float32 tensors.
Multi-token-prediction modules are not served and left out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from tapwater.checkpoint.names import Entry, layout, meta_model
from tapwater.config import ModelConfig

KV_B = ".kv_b_proj.weight"


@dataclass(frozen=True)
class Array:
    """One array of a packed model, made of the tensors `hf_names`: of each of them, or cut out of one by `cut`.

    `shape` is [count, rows, columns] of a matrix or a stack of them, else that of a float32 tensor.
    """

    name: str
    shape: tuple[int, ...]
    is_matrix: bool
    hf_names: tuple[str, ...]
    cut: Callable[[Tensor], Tensor] | None = None


def packed_arrays(config: ModelConfig, entries: Iterable[Entry] | None = None) -> list[Array]:
    """Every array in order; `entries` are the layout of a model of `config`, where there is one already."""
    found = []
    for entry in layout(meta_model(config)) if entries is None else entries:
        if entry.name.startswith("mtp."):
            continue
        if entry.name.endswith(KV_B):
            found += _kv_b(config, entry)
        elif len(entry.shape) == 1 or entry.name.endswith(".mlp.gate.weight"):
            found.append(Array(entry.name, entry.shape, False, entry.hf_names))
        else:
            shape = (len(entry.hf_names), *entry.shape[-2:])
            found.append(Array(entry.name, shape, True, entry.hf_names))
    return found


def _kv_b(config: ModelConfig, entry: Entry) -> list[Array]:
    H, mla = config.num_attention_heads, config.mla
    C, N, V = mla.kv_lora_rank, mla.qk_nope_head_dim, mla.v_head_dim
    shapes = {"key_up": (H, C, N), "kv_b_key": (H, N, C), "kv_b_value": (H, V, C)}
    prefix = entry.name.removesuffix(KV_B)
    return [
        Array(f"{prefix}.{name}", shape, True, entry.hf_names, partial(_cut_kv_b, name, H, N))
        for name, shape in shapes.items()
    ]


def _cut_kv_b(name: str, heads: int, nope: int, weight: Tensor) -> Tensor:
    by_head_HEC = weight.unflatten(0, (heads, -1))
    if name == "kv_b_value":
        return by_head_HEC[:, nope:]
    key_HNC = by_head_HEC[:, :nope]
    return key_HNC.transpose(1, 2) if name == "key_up" else key_HNC
