"""GGUF's container: what a file declares, and its tensors, read from their place in the file one at a time.

The header is read by `gguf_header.py`; tables and dequantisers come from the `gguf` package.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import Tensor

from tapwater.checkpoint.gguf_blocks import STEPPED, Steps, read_steps
from tapwater.errors import CheckpointError

Value = bool | int | float | str | list

# How the bytes are read; every other supported type is blocks of bytes, dequantised to float32.
_PLAIN = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype("<i2"),  # numpy has no bfloat16; torch takes the bits over
}
_QUANTISED = tuple(
    GGMLQuantizationType[name]
    for name in (
        *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    )
)
SUPPORTED = (*_PLAIN, *_QUANTISED)
SLICE = 2**22  # values dequantised at a time


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `shape` in torch's order (rows last but one), `offset` from the start of the file."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * block_bytes


@dataclass(frozen=True)
class GgufContainer:
    """What a GGUF file declares: metadata by key, tensors by GGUF name. The data stays on disk."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, StoredTensor]

    def read(self, name: str) -> Tensor:
        """A whole tensor: F32, F16 and BF16 as stored, quantised types as float32."""
        tensor = self.tensors[name]
        return self._values(name, tensor.shape, tensor.offset, tensor.nbytes)

    def read_part(self, name: str, index: int) -> Tensor:
        """Part `index` of a tensor stacked along its first dimension; the other parts are not touched."""
        tensor = self.tensors[name]
        nbytes = tensor.nbytes // tensor.shape[0]
        return self._values(name, tensor.shape[1:], tensor.offset + index * nbytes, nbytes)

    def steps(self, name: str, index: int | None = None) -> Steps | None:
        """The integers of a matrix, or of matrix `index` of a stack; None if our formats do not hold them."""
        tensor = self.tensors[name]
        if tensor.kind not in STEPPED:
            return None
        nbytes = tensor.nbytes if index is None else tensor.nbytes // tensor.shape[0]
        raw = torch.from_numpy(self._bytes(name, tensor.offset + (index or 0) * nbytes, nbytes))
        steps = read_steps(tensor.kind, raw.view(tensor.shape[-2], -1))
        if steps is not None:
            for each in (steps.scale_OG, steps.minimum_OG):
                if each is not None:
                    self._check_finite(name, each)
        return steps

    def _values(self, name: str, shape: tuple[int, ...], offset: int, nbytes: int) -> Tensor:
        kind = self.tensors[name].kind
        raw = self._bytes(name, offset, nbytes)
        if kind in _PLAIN:
            values = torch.from_numpy(raw.view(_PLAIN[kind]))
            values = values.view(torch.bfloat16) if kind is GGMLQuantizationType.BF16 else values
        else:
            values = torch.from_numpy(_dequantised(raw.reshape(math.prod(shape[:-1]), -1), shape[-1], kind))
        self._check_finite(name, values)
        return values.reshape(shape)

    def _bytes(self, name: str, offset: int, nbytes: int) -> np.ndarray:
        # Read rather than mapped: a mapped file that shrinks underneath kills the process instead of raising.
        try:
            raw = np.fromfile(self.path, np.uint8, nbytes, offset=offset)
        except OSError as error:
            raise CheckpointError(f"{self.path}: tensor {name} cannot be read: {error}") from None
        if raw.nbytes != nbytes:
            raise CheckpointError(f"{self.path}: truncated since it was opened: tensor {name} is cut off")
        return raw

    def _check_finite(self, name: str, values: Tensor) -> None:
        # least and greatest: NaN would be both, and a mask of everything would double the memory
        if not torch.stack(values.aminmax()).isfinite().all():
            raise CheckpointError(f"{self.path}: tensor {name} holds values that are not finite; the file is damaged")


def _dequantised(raw: np.ndarray, columns: int, kind: GGMLQuantizationType) -> np.ndarray:
    """Float32 rows; by slices, since the package takes twice the memory of what it returns."""
    values = np.empty((len(raw), columns), np.float32)
    step = max(1, SLICE // columns)
    with np.errstate(all="ignore"):  # damaged scales overflow; the caller's check names the tensor
        for start in range(0, len(raw), step):
            values[start : start + step] = dequantize(raw[start : start + step], kind)
    return values
