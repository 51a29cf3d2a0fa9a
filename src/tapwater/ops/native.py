"""The door to the C++ kernels in `_kernels`: the same operations as `reference`, on packed weights.

A call passes pointers and sizes through ctypes, which releases the GIL; checks come before any kernel runs.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import tapwater.ops
from tapwater.errors import ConfigError
from tapwater.ops.quant import GROUP, Format, PackedWeight

TILE_ROWS = 8  # rows of activations that kernels take together; scratch is laid out in whole tiles
INSTRUCTION_SETS = ("avx512_bf16", "avx512", "avx2", "portable")  # best first
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

    def paged_attention(
        self,
        q_THd: Tensor,
        pages_PSX: Tensor,
        page_table_BP: Tensor,
        query_lengths: Sequence[int],
        context_lengths: Sequence[int],
        num_kv_heads: int,
        scale: float,
    ) -> Tensor:
        """As `reference.paged_attention`, on a float32 cache; a token's result does not depend on its neighbours."""
        dim = q_THd.shape[-1]
        if pages_PSX.shape[-1] != 2 * num_kv_heads * dim:
            raise ValueError(f"a cache entry of {num_kv_heads} heads of {dim} is not {pages_PSX.shape[-1]} numbers")
        layouts = [(head * dim, dim, (num_kv_heads + head) * dim, dim) for head in range(num_kv_heads)]
        return self._attend(q_THd, pages_PSX, page_table_BP, query_lengths, context_lengths, layouts, scale)

    def paged_mla_absorb(
        self,
        q_THX: Tensor,
        pages_PSX: Tensor,
        page_table_BP: Tensor,
        query_lengths: Sequence[int],
        context_lengths: Sequence[int],
        kv_lora_rank: int,
        scale: float,
    ) -> Tensor:
        """As `reference.paged_mla_absorb`, on a float32 cache; a token's result does not depend on its neighbours."""
        width = q_THX.shape[-1]
        if pages_PSX.shape[-1] != width or not 0 < kv_lora_rank <= width:
            raise ValueError(f"queries of {width} do not fit entries of {pages_PSX.shape[-1]} and rank {kv_lora_rank}")
        layouts = [(0, width, 0, kv_lora_rank)]
        return self._attend(q_THX, pages_PSX, page_table_BP, query_lengths, context_lengths, layouts, scale)

    def _attend(
        self,
        q_THd: Tensor,
        pages_PSX: Tensor,
        page_table_BP: Tensor,
        query_lengths: Sequence[int],
        context_lengths: Sequence[int],
        layouts: list[tuple[int, int, int, int]],
        scale: float,
    ) -> Tensor:
        """`layouts`: key offset, key width, value offset and value width of each key-value head in a cache entry."""
        tokens, heads, _ = q_THd.shape
        _check_paged(q_THd, pages_PSX, page_table_BP, query_lengths, context_lengths)
        if heads % len(layouts):
            raise ValueError(f"{heads} query heads cannot share {len(layouts)} key-value heads")
        entry = pages_PSX.shape[-1]
        q_THd = q_THd.contiguous()
        layout = torch.tensor([(entry, *each) for each in layouts])
        queries, contexts = torch.tensor(query_lengths), torch.tensor(context_lengths)
        out = torch.empty(tokens, heads, layouts[0][3])
        state = torch.empty(tokens, 2 * heads)
        self._library.tw_paged_attention(
            self._pool,
            q_THd.data_ptr(),
            heads,
            pages_PSX.data_ptr(),
            pages_PSX.shape[1],
            page_table_BP.data_ptr(),
            page_table_BP.shape[1],
            queries.data_ptr(),
            contexts.data_ptr(),
            len(query_lengths),
            layout.data_ptr(),
            len(layouts),
            scale,
            out.data_ptr(),
            state.data_ptr(),
        )
        return out


def _check_paged(
    q_THd: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
) -> None:
    """ValueError for whatever would make the kernel read past an array."""
    if q_THd.dtype != torch.float32 or pages_PSX.dtype != torch.float32 or not pages_PSX.is_contiguous():
        raise ValueError("queries and a contiguous cache must be float32")
    if page_table_BP.dtype != torch.int64 or not page_table_BP.is_contiguous():
        raise ValueError("the page table must be contiguous int64")
    if not len(query_lengths) == len(context_lengths) == page_table_BP.shape[0]:
        raise ValueError("query_lengths, context_lengths and the page table are of different requests")
    if sum(query_lengths) != q_THd.shape[0]:
        raise ValueError(f"query_lengths add up to {sum(query_lengths)}, there are {q_THd.shape[0]} queries")
    room = page_table_BP.shape[1] * pages_PSX.shape[1]
    if any(not 0 < query <= context <= room for query, context in zip(query_lengths, context_lengths, strict=True)):
        raise ValueError(f"a request needs 0 < query length <= context length <= {room}, the tokens its pages hold")
    if int(page_table_BP.min()) < 0 or int(page_table_BP.max()) >= pages_PSX.shape[0]:
        raise ValueError(f"the page table names a page outside 0..{pages_PSX.shape[0] - 1}")


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
    shape = [pointer, pointer, number, pointer, number, pointer, number, pointer, pointer, number, pointer, number]
    library.tw_paged_attention.argtypes = [*shape, ctypes.c_float, pointer, pointer]
    library.tw_paged_attention.restype = None
    return library
