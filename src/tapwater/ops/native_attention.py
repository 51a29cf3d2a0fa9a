"""Paged attention by the native kernels: `reference.paged_attention` and `paged_mla_absorb` on caches of any format."""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from tapwater.ops.cache_format import CacheFormat, entry_bytes, segment_bytes
from tapwater.ops.native import Kernels, library

_number, _pointer = ctypes.c_int64, ctypes.c_void_p


class _CacheSpec(ctypes.Structure):
    _fields_ = [("entry_bytes", _number), ("page_size", _number)]


class _Segment(ctypes.Structure):
    _fields_ = [("offset", _number), ("width", _number), ("format", ctypes.c_int32)]


class _HeadSpec(ctypes.Structure):
    _fields_ = [("key", _Segment * 2), ("num_keys", _number), ("value", _Segment)]


class _Requests(ctypes.Structure):
    _fields_ = [
        ("count", _number),
        *((name, _pointer) for name in ("query_lengths", "context_lengths", "page_table")),
        ("pages_per_request", _number),
    ]


def store(
    kernels: Kernels, format: CacheFormat, pages_PSX: Tensor, slots_T: Tensor, entries_TX: Tensor, widths: Sequence[int]
) -> None:
    """Write tokens' entries, float32 [T, sum of widths], to their slots (page * S + offset), in place.

    `pages_PSX` are bytes, [P, S, entry_bytes(format, widths)]. Raises ValueError for what does not fit.
    """
    _check_pages(pages_PSX, entry_bytes(format, widths))
    if entries_TX.dtype != torch.float32 or entries_TX.ndim != 2 or entries_TX.shape[1] != sum(widths):
        raise ValueError(f"entries must be float32 [T, {sum(widths)}], got {entries_TX.dtype} {list(entries_TX.shape)}")
    if slots_T.dtype != torch.int64 or slots_T.shape != entries_TX.shape[:1]:
        raise ValueError(f"slots must be int64 [{entries_TX.shape[0]}], got {slots_T.dtype} {list(slots_T.shape)}")
    room = pages_PSX.shape[0] * pages_PSX.shape[1]
    if slots_T.numel() and not 0 <= int(slots_T.min()) <= int(slots_T.max()) < room:
        raise ValueError(f"slots must lie in 0..{room - 1}")
    slots_T, entries_TX = slots_T.contiguous(), entries_TX.contiguous()
    kernels.check(
        _library().tw_store_entries(
            kernels.runner,
            entries_TX.data_ptr(),
            entries_TX.shape[0],
            (_Segment * len(widths))(*_segments(format, widths)),
            len(widths),
            _spec(pages_PSX),
            slots_T.data_ptr(),
            pages_PSX.data_ptr(),
        )
    )


def paged_attention(
    kernels: Kernels,
    format: CacheFormat,
    q_THd: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    num_kv_heads: int,
    scale: float,
) -> Tensor:
    """As `reference.paged_attention`, keys of all heads, then values, being a segment each.

    A token's result does not depend on its neighbours. Raises ValueError for what does not fit.
    """
    segments = _segments(format, [q_THd.shape[-1]] * (2 * num_kv_heads))
    heads = [
        _HeadSpec((key, _Segment()), 1, value) for key, value in zip(segments, segments[num_kv_heads:], strict=False)
    ]
    return _attend(
        kernels, format, q_THd, pages_PSX, page_table_BP, query_lengths, context_lengths, segments, heads, scale
    )


def paged_mla_absorb(
    kernels: Kernels,
    format: CacheFormat,
    q_THX: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    kv_lora_rank: int,
    scale: float,
) -> Tensor:
    """As `reference.paged_mla_absorb`, the latent and the rope key being a segment each.

    A token's result does not depend on its neighbours. Raises ValueError for what does not fit.
    """
    width = q_THX.shape[-1]
    if not 0 < kv_lora_rank < width:
        raise ValueError(f"queries of {width} do not fit a latent of {kv_lora_rank} and a rope key")
    latent, rope = segments = _segments(format, [kv_lora_rank, width - kv_lora_rank])
    heads = [_HeadSpec((latent, rope), 2, latent)]
    return _attend(
        kernels, format, q_THX, pages_PSX, page_table_BP, query_lengths, context_lengths, segments, heads, scale
    )


def _attend(
    kernels: Kernels,
    format: CacheFormat,
    q_THd: Tensor,
    pages_PSX: Tensor,
    page_table_BP: Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    segments: list[_Segment],
    kv_heads: list[_HeadSpec],
    scale: float,
) -> Tensor:
    tokens, heads, _ = q_THd.shape
    if q_THd.dtype != torch.float32:
        raise ValueError(f"queries must be float32, got {q_THd.dtype}")
    if heads % len(kv_heads):
        raise ValueError(f"{heads} query heads cannot share {len(kv_heads)} key-value heads")
    _check_pages(pages_PSX, segments[-1].offset + segment_bytes(format, segments[-1].width))
    _check_requests(pages_PSX, page_table_BP, query_lengths, context_lengths, tokens)
    q_THd, page_table_BP = q_THd.contiguous(), page_table_BP.contiguous()
    queries, contexts = torch.tensor(query_lengths), torch.tensor(context_lengths)
    requests = _Requests(
        len(query_lengths), queries.data_ptr(), contexts.data_ptr(), page_table_BP.data_ptr(), page_table_BP.shape[1]
    )
    out = torch.empty(tokens, heads, kv_heads[0].value.width)
    kernels.check(
        _library().tw_paged_attention(
            kernels.runner,
            q_THd.data_ptr(),
            heads,
            pages_PSX.data_ptr(),
            _spec(pages_PSX),
            (_HeadSpec * len(kv_heads))(*kv_heads),
            len(kv_heads),
            requests,
            scale,
            out.data_ptr(),
        )
    )
    return out


def _segments(format: CacheFormat, widths: Sequence[int]) -> list[_Segment]:
    return [_Segment(entry_bytes(format, widths[:index]), width, format.number) for index, width in enumerate(widths)]


def _spec(pages_PSX: Tensor) -> _CacheSpec:
    return _CacheSpec(pages_PSX.shape[2], pages_PSX.shape[1])


def _check_pages(pages_PSX: Tensor, size: int) -> None:
    if pages_PSX.dtype != torch.uint8 or pages_PSX.ndim != 3 or not pages_PSX.is_contiguous():
        raise ValueError(f"pages must be contiguous uint8 [P, S, bytes], got {pages_PSX.dtype} {list(pages_PSX.shape)}")
    if pages_PSX.shape[2] != size:
        raise ValueError(f"a cache entry of {size} bytes is expected, pages have {pages_PSX.shape[2]}")


def _check_requests(
    pages_PSX: Tensor, page_table_BP: Tensor, query_lengths: Sequence[int], context_lengths: Sequence[int], tokens: int
) -> None:
    """ValueError for whatever would make the kernel read past an array."""
    if page_table_BP.dtype != torch.int64 or page_table_BP.ndim != 2:
        raise ValueError(
            f"the page table must be int64 [B, pages], got {page_table_BP.dtype} {list(page_table_BP.shape)}"
        )
    if not len(query_lengths) == len(context_lengths) == page_table_BP.shape[0]:
        raise ValueError("query_lengths, context_lengths and the page table are of different requests")
    if sum(query_lengths) != tokens:
        raise ValueError(f"query_lengths add up to {sum(query_lengths)}, there are {tokens} queries")
    room = page_table_BP.shape[1] * pages_PSX.shape[1]
    if any(not 0 < query <= context <= room for query, context in zip(query_lengths, context_lengths, strict=True)):
        raise ValueError(f"a request needs 0 < query length <= context length <= {room}, the tokens its pages hold")
    if page_table_BP.numel() and not 0 <= int(page_table_BP.min()) <= int(page_table_BP.max()) < pages_PSX.shape[0]:
        raise ValueError(f"the page table names a page outside 0..{pages_PSX.shape[0] - 1}")


@functools.cache
def _library() -> ctypes.CDLL:
    loaded = library()
    number, pointer = _number, _pointer
    cache, segments, heads, requests = map(ctypes.POINTER, (_CacheSpec, _Segment, _HeadSpec, _Requests))
    loaded.tw_store_entries.argtypes = [pointer, pointer, number, segments, number, cache, pointer, pointer]
    loaded.tw_paged_attention.argtypes = [
        *(pointer, pointer, number, pointer, cache, heads, number, requests),
        *(ctypes.c_float, pointer),
    ]
    return loaded
