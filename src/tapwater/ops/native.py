"""The door to the C++ kernels in `_kernels`: the same operations as `reference`, on packed weights.

A call passes pointers and sizes through ctypes, which releases the GIL; checks come before any kernel runs.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

import tapwater.ops
from tapwater.errors import ConfigError
from tapwater.ops.quant import GROUP, Format, PackedWeight

TILE_ROWS = 8  # rows of activations that kernels take together; scratch is laid out in whole tiles
INSTRUCTION_SETS = ("avx512", "avx2", "portable")  # best first
_FORMAT_NUMBER = {format: number for number, format in enumerate(Format)}


def is_built() -> bool:
    """Whether this installation has the kernels; without a compiler it has not, and `reference` runs instead."""
    return _library_path() is not None


class Kernels:
    """The kernels with a pool of `threads` threads, the caller's included; for one calling thread at a time."""

    def __init__(self, threads: int) -> None:
        self._library = _library()
        self._pool = self._library.tw_pool_create(threads)

    def close(self) -> None:
        """End the pool's threads; the object is of no further use."""
        if self._pool:
            self._library.tw_pool_destroy(self._pool)
            self._pool = None

    def linear(self, x_TI: Tensor, weight: PackedWeight) -> Tensor:
        """x @ weight^T in float32, x rounded to 8 bits per row and group of 32 (see `reference.packed_linear`).

        A row's result does not depend on the rows beside it. Raises ValueError for a wrong shape or dtype.
        """
        if x_TI.dtype != torch.float32 or x_TI.ndim != 2 or x_TI.shape[1] != weight.columns:
            raise ValueError(f"x must be float32 [rows, {weight.columns}], got {x_TI.dtype} {list(x_TI.shape)}")
        x_TI = x_TI.contiguous()
        rows, groups = x_TI.shape[0], weight.blocks.shape[1]
        padded = -(-rows // TILE_ROWS) * TILE_ROWS * groups
        q = torch.empty(padded * GROUP, dtype=torch.int8)
        scale = torch.empty(padded)
        total = torch.empty(padded, dtype=torch.int32)
        y_TO = torch.empty(rows, weight.rows)
        self._library.tw_linear(
            self._pool,
            _FORMAT_NUMBER[weight.format],
            weight.blocks.data_ptr(),
            weight.rows,
            x_TI.data_ptr(),
            rows,
            weight.columns,
            q.data_ptr(),
            scale.data_ptr(),
            total.data_ptr(),
            y_TO.data_ptr(),
        )
        return y_TO


def instruction_set() -> str:
    """The instruction set in use: the best this processor runs, unless another was forced."""
    return _library().tw_instruction_set().decode()


def force_instruction_set(name: str) -> None:
    """Use one of INSTRUCTION_SETS in this process; ConfigError if this build or processor lacks it."""
    if _library().tw_force_instruction_set(name.encode()):
        raise ConfigError(f"this build or processor has no kernels for {name!r}; known: {', '.join(INSTRUCTION_SETS)}")


def _library_path() -> Path | None:
    # an editable installation keeps sources and built files in two places
    candidates = (Path(place) / "_kernels.so" for place in tapwater.ops.__path__)
    return next((path for path in candidates if path.exists()), None)


@functools.cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    if path is None:
        raise ConfigError("the native kernels are not built: install tapwater again where there is a C++ compiler")
    library = ctypes.CDLL(str(path))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.tw_instruction_set.restype = ctypes.c_char_p
    library.tw_force_instruction_set.argtypes = [ctypes.c_char_p]
    library.tw_pool_create.argtypes, library.tw_pool_create.restype = [ctypes.c_int32], pointer
    library.tw_pool_destroy.argtypes, library.tw_pool_destroy.restype = [pointer], None
    sizes = [pointer, ctypes.c_int32, pointer, number, pointer, number, number]
    library.tw_linear.argtypes, library.tw_linear.restype = [*sizes, *[pointer] * 4], None
    return library
