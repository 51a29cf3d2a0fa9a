"""The door to the C++ kernels in `_kernels`: one shared library, reached through ctypes, which releases the GIL.

A call passes pointers and sizes; checks come before any kernel runs. Results are bit-identical for a row or a request
whatever lies beside it.
"""

import ctypes
import functools
import logging
from pathlib import Path

import torch
from torch import Tensor

import tapwater.ops
from tapwater.errors import ConfigError
from tapwater.ops.quant import Format, PackedWeight

INSTRUCTION_SETS = ("avx512_bf16", "avx512", "avx2", "portable")  # best first
OUT_OF_RANGE = 2  # what tw_forward answers, having touched nothing, to an index of something there is not
log = logging.getLogger(__name__)

_FORMAT_NUMBER = {format: number for number, format in enumerate(Format)}


class Matrix(ctypes.Structure):
    """tw::Matrix of csrc/kernels.h."""

    _fields_ = [
        ("blocks", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("format", "rows", "columns", "count")),
    ]


def matrix(weight: PackedWeight) -> Matrix:
    """`weight` as kernels see it; it must outlive every call that reads it."""
    format = _FORMAT_NUMBER[weight.format]
    return Matrix(weight.blocks.data_ptr(), format, weight.rows, weight.columns, weight.count)


class Kernels:
    """The kernels with a pool of `threads` threads, the caller's included; for one calling thread at a time.

    Raises ValueError for less than one thread, ConfigError where the system does not give that many.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"at least one thread must compute, got {threads}")
        self.library = library()
        self.threads = threads
        self._runner: int | None = self.library.tw_runner_create(threads)
        if self._runner is None:
            raise ConfigError(f"engine.threads: the system does not give {threads} threads; lower it")

    @property
    def runner(self) -> int:
        """The pool as native calls take it; RuntimeError once it is closed."""
        if self._runner is None:
            raise RuntimeError("the native kernels of this model are closed")
        return self._runner

    def close(self) -> None:
        """End the pool's threads; the object is of no further use."""
        if self._runner is not None:
            self.library.tw_runner_destroy(self._runner)
            self._runner = None

    def linear(self, x_TI: Tensor, weight: PackedWeight, index: int = 0) -> Tensor:
        """x @ weight^T in float32 with matrix `index` of a stack, x rounded as in `reference.packed_linear`.

        Raises ValueError for a wrong shape or dtype.
        """
        _check_rows(x_TI, weight.columns)
        if not 0 <= index < weight.count:
            raise ValueError(f"matrix {index} of a stack of {weight.count}")
        x_TI = x_TI.contiguous()
        y_TO = torch.empty(x_TI.shape[0], weight.rows)
        self.check(
            self.library.tw_linear(
                self.runner, ctypes.byref(matrix(weight)), index, x_TI.data_ptr(), x_TI.shape[0], y_TO.data_ptr()
            )
        )
        return y_TO

    def swiglu(self, x_TD: Tensor, gate: PackedWeight, up: PackedWeight, down: PackedWeight) -> Tensor:
        """As `reference.packed_swiglu`; gate and up must be of one format."""
        _check_rows(x_TD, gate.columns)
        if gate.format != up.format or gate.shape != up.shape or down.columns != gate.rows:
            raise ValueError(
                f"gate {gate.format} {gate.shape}, up {up.format} {up.shape} and down {down.shape} disagree"
            )
        x_TD = x_TD.contiguous()
        y_TD = torch.empty(x_TD.shape[0], down.rows)
        matrices = [ctypes.byref(matrix(each)) for each in (gate, up, down)]
        self.check(self.library.tw_swiglu(self.runner, *matrices, x_TD.data_ptr(), x_TD.shape[0], y_TD.data_ptr()))
        return y_TD

    def read(self, tensor: Tensor) -> None:
        """Read every byte with all threads and do nothing with it: for measuring memory bandwidth."""
        self.check(self.library.tw_read(self.runner, tensor.data_ptr(), tensor.nbytes))

    @staticmethod
    def check(status: int) -> None:
        """MemoryError when a call ran out of memory."""
        if status:
            raise MemoryError("the native kernels could not get the memory a step needs; lower engine.max_batch_tokens")


def _check_rows(x_TI: Tensor, columns: int) -> None:
    if x_TI.dtype != torch.float32 or x_TI.ndim != 2 or x_TI.shape[1] != columns:
        raise ValueError(f"x must be float32 [rows, {columns}], got {x_TI.dtype} {list(x_TI.shape)}")


def is_built() -> bool:
    """Whether this installation has the kernels; without a compiler it has not, and `reference` runs instead."""
    return _library_path() is not None


def instruction_set() -> str:
    """The instruction set in use: the best this processor runs, unless another was forced."""
    return library().tw_instruction_set().decode()


def force_instruction_set(name: str) -> None:
    """Use one of INSTRUCTION_SETS in this process; ConfigError if this build or processor lacks it."""
    if library().tw_force_instruction_set(name.encode()):
        raise ConfigError(f"this build or processor has no kernels for {name!r}; known: {', '.join(INSTRUCTION_SETS)}")


def _library_path() -> Path | None:
    # an editable installation keeps sources and built files in two places
    candidates = (Path(place) / "_kernels.so" for place in tapwater.ops.__path__)
    return next((path for path in candidates if path.exists()), None)


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library with its signatures; ConfigError where it was not built."""
    path = _library_path()
    if path is None:
        raise ConfigError("the native kernels are not built: install tapwater again where there is a C++ compiler")
    loaded = ctypes.CDLL(str(path))
    number, pointer, status = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32
    loaded.tw_instruction_set.restype = ctypes.c_char_p
    loaded.tw_force_instruction_set.argtypes = [ctypes.c_char_p]
    loaded.tw_runner_create.argtypes, loaded.tw_runner_create.restype = [ctypes.c_int32], pointer
    loaded.tw_runner_destroy.argtypes, loaded.tw_runner_destroy.restype = [pointer], None
    signatures = {
        "tw_linear": [pointer, pointer, number, pointer, number, pointer],
        "tw_swiglu": [pointer, pointer, pointer, pointer, pointer, number, pointer],
        "tw_read": [pointer, pointer, number],
        "tw_forward": [pointer, pointer, pointer, pointer],
        "tw_logits": [pointer, pointer, pointer, number, pointer, pointer, pointer],
    }
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, status
    log.info("native kernels compute with %s", loaded.tw_instruction_set().decode())
    return loaded
