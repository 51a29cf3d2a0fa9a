"""Packed weights read back as tensors, for what computes in floats: torch, and scoring."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tapwater.checkpoint.names import layout, meta_model
from tapwater.checkpoint.packed_layout import KV_B
from tapwater.config import ModelConfig
from tapwater.model import PackedWeights
from tapwater.ops.quant import unpack


class UnpackedSource:
    """Packed weights as a TensorSource: float32, exactly what the kernels compute with, unpacked when asked for.

    `config` is without the multi-token-prediction modules, which packing leaves out. MLA's kv_b_proj is the one of
    expanded attention.
    """

    def __init__(self, config: ModelConfig, weights: PackedWeights, where: str) -> None:
        self.where = where
        self.config = replace(config, num_nextn_predict_layers=0)
        self._weights = weights
        self._places = {
            hf_name: (entry, index)
            for entry in layout(meta_model(self.config))
            for index, hf_name in enumerate(entry.hf_names)
        }

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the configuration: packing, or opening a packed directory, has held the arrays against it."""
        return {name: entry.hf_shape for name, (entry, _) in self._places.items()}

    def read(self, name: str) -> Tensor:
        entry, index = self._places[name]
        if entry.name in self._weights.tensors:
            return self._weights.tensors[entry.name].clone()  # a model must not go on living in a mapped file
        if entry.name.endswith(KV_B):
            return self._kv_b(entry.name.removesuffix(KV_B))
        return unpack(self._weights.matrices[entry.name].matrix(index))

    def _kv_b(self, prefix: str) -> Tensor:
        stacks = [self._weights.matrices[f"{prefix}.{part}"] for part in ("kv_b_key", "kv_b_value")]
        by_head = [unpack(stack).view(stack.count, stack.rows, stack.columns) for stack in stacks]
        return torch.cat(by_head, dim=1).flatten(0, 1)
