"""Native paged attention against the reference on the same decoded entries, and a row's bits in all company.

Kernels compute in float32 on every instruction set, so the tolerance is that of two orders of summation.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ops.instruction_sets import forced
from ops.paging import RAGGED
from tapwater.ops import native, native_attention, reference
from tapwater.ops.cache_format import CacheFormat, decode, encode, entry_bytes

BYTES_OF_NAN = 0xFF  # as float32, bfloat16 and as the float16 scale of q8 and q6


@pytest.fixture(scope="module", params=native.INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[native.Kernels]:
    yield from forced(request.param, threads=2)


@dataclass
class Cache:
    """Requests' entries in shuffled pages, NaN wherever no token lies; `decoded` is the same for the reference."""

    format: CacheFormat
    widths: tuple[int, ...]
    pages: Tensor
    table: Tensor

    @property
    def decoded(self) -> Tensor:
        return decode(self.format, self.pages, self.widths)


def cache(
    format: CacheFormat, widths: Sequence[int], contexts: Sequence[int], page_size: int = 4, seed: int = 0
) -> Cache:
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // page_size) for length in contexts]
    order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
    pages = torch.full((len(order), page_size, entry_bytes(format, widths)), BYTES_OF_NAN, dtype=torch.uint8)
    table = torch.zeros(len(counts), max(counts), dtype=torch.long)
    for request, (length, count) in enumerate(zip(contexts, counts, strict=True)):
        held = torch.tensor([order.pop() for _ in range(count)])
        table[request, :count] = held
        slots = (held[:, None] * page_size + torch.arange(page_size)).flatten()[:length]
        entries = torch.randn(length, sum(widths), generator=generator)
        pages.view(-1, pages.shape[-1])[slots] = encode(format, entries, widths)
    return Cache(format, tuple(widths), pages, table)


def queries(tokens: int, heads: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(tokens, heads, width, generator=torch.Generator().manual_seed(seed))


def check_grouped(
    kernels: native.Kernels,
    held: Cache,
    query: Sequence[int],
    context: Sequence[int],
    heads: int,
    kv_heads: int,
    dim: int,
) -> None:
    q = queries(sum(query), heads, dim)
    rest = (held.table, query, context, kv_heads, 2 * dim**-0.5)
    out = native_attention.paged_attention(kernels, held.format, q, held.pages, *rest)
    torch.testing.assert_close(out, reference.paged_attention(q, held.decoded, *rest), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", CacheFormat)
@pytest.mark.parametrize(("query", "context"), RAGGED)
def test_grouped_attention_over_ragged_requests(
    kernels: native.Kernels, format: CacheFormat, query: tuple[int, ...], context: tuple[int, ...]
) -> None:
    held = cache(format, [64] * 6, context)
    check_grouped(kernels, held, query, context, heads=9, kv_heads=3, dim=64)


@pytest.mark.parametrize("format", CacheFormat)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 32), (4, 2, 8), (6, 1, 33), (3, 3, 40), (24, 2, 80), (2, 1, 256), (40, 1, 17)]
)
def test_any_number_and_width_of_heads(
    kernels: native.Kernels, format: CacheFormat, heads: int, kv_heads: int, dim: int
) -> None:
    query, context = (1, 7, 2), (70, 7, 133)
    held = cache(format, [dim] * (2 * kv_heads), context)
    check_grouped(kernels, held, query, context, heads, kv_heads, dim)


@pytest.mark.parametrize("format", CacheFormat)
@pytest.mark.parametrize(("query", "context"), [*RAGGED, ((1, 5), (515, 90))])
@pytest.mark.parametrize(("heads", "rank", "rope"), [(16, 512, 64), (3, 12, 4), (2, 25, 10)])
def test_absorbed_latent_attention(
    kernels: native.Kernels,
    format: CacheFormat,
    query: tuple[int, ...],
    context: tuple[int, ...],
    heads: int,
    rank: int,
    rope: int,
) -> None:
    held = cache(format, (rank, rope), context)
    q = queries(sum(query), heads, rank + rope)
    rest = (held.table, query, context, rank, 2 * (rank + rope) ** -0.5)
    out = native_attention.paged_mla_absorb(kernels, format, q, held.pages, *rest)
    torch.testing.assert_close(out, reference.paged_mla_absorb(q, held.decoded, *rest), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", CacheFormat)
@pytest.mark.parametrize("page_size", [1, 5, 16, 64])
@pytest.mark.parametrize("context", [511, 512, 513, 1024, 1500])
def test_contexts_that_cross_splits_in_any_page_size(
    kernels: native.Kernels, format: CacheFormat, page_size: int, context: int
) -> None:
    held = cache(format, (16, 16), (context, 3), page_size)
    check_grouped(kernels, held, (2, 1), (context, 3), heads=3, kv_heads=1, dim=16)


@pytest.mark.parametrize("format", [CacheFormat.FLOAT32, CacheFormat.Q6])
@pytest.mark.parametrize("query", [30, 129, 530])
def test_prompts_of_many_row_blocks(kernels: native.Kernels, format: CacheFormat, query: int) -> None:
    held = cache(format, [24] * 4, (query + 40,), page_size=16)
    check_grouped(kernels, held, (query,), (query + 40,), heads=6, kv_heads=2, dim=24)


@pytest.mark.parametrize("format", CacheFormat)
def test_a_token_is_the_same_bits_in_any_chunk_and_batch(kernels: native.Kernels, format: CacheFormat) -> None:
    context = (530, 5, 64, 1100)
    held = cache(format, [20] * 4, context, page_size=8)
    q = queries(530, 6, 20)

    def attend(q: Tensor, requests: list[int], query: tuple[int, ...], context: tuple[int, ...]) -> Tensor:
        table = held.table[requests].contiguous()
        return native_attention.paged_attention(kernels, format, q, held.pages, table, query, context, 2, 0.4)

    whole = attend(q, [0], (530,), (530,))
    for start, stop in ((529, 530), (0, 1), (511, 512), (512, 513), (5, 20), (100, 107), (3, 400), (63, 129)):
        assert torch.equal(attend(q[start:stop], [0], (stop - start,), (stop,)), whole[start:stop])
    strangers = queries(70, 6, 20, seed=4)
    together = attend(
        torch.cat((strangers[:2], q[490:530], strangers[2:])), [1, 0, 2, 3], (2, 40, 64, 4), (5, 530, 64, 1100)
    )
    assert torch.equal(together[2:42], whole[490:530])
    crowd = attend(torch.cat((q[529:], strangers[:40])), [0] + [1] * 40, (1,) * 41, (530,) + (5,) * 40)
    assert torch.equal(crowd[:1], whole[529:])


@pytest.mark.parametrize("format", [CacheFormat.BFLOAT16, CacheFormat.Q8])
def test_a_latent_row_is_the_same_bits_alone_and_among_many(kernels: native.Kernels, format: CacheFormat) -> None:
    """Rows among few have tokens in lanes, rows among many have rows in lanes; neither shows."""
    held = cache(format, (40, 9), (700,), page_size=16)
    q = queries(30, 16, 49)

    def attend(q: Tensor, context: int) -> Tensor:
        query = (q.shape[0],)
        return native_attention.paged_mla_absorb(kernels, format, q, held.pages, held.table, query, (context,), 40, 0.3)

    whole = attend(q, 700)
    for heads in (1, 2, 5, 9, 10, 11, 15):
        assert torch.equal(attend(q[:, :heads].contiguous(), 700), whole[:, :heads])
    for token in (0, 17, 29):
        assert torch.equal(attend(q[token : token + 1], 671 + token), whole[token : token + 1])


@pytest.mark.parametrize("context", [(1500,), (2100, 40), (600, 600, 600, 3)])
def test_threads_share_a_context_without_a_trace(context: tuple[int, ...]) -> None:
    """With several threads, long contexts are split among them; one thread takes each request whole."""
    held = cache(CacheFormat.BFLOAT16, [32] * 4, context, page_size=16)
    query = tuple(min(length, 3) for length in context)
    q = queries(sum(query), 6, 32)
    results = []
    for threads in (1, 2, 3):
        kernels = native.Kernels(threads)
        rest = (held.pages, held.table, query, context, 2, 0.2)
        results.append(native_attention.paged_attention(kernels, held.format, q, *rest))
        again = native_attention.paged_attention(kernels, held.format, q, *rest)
        assert torch.equal(again, results[-1])
        kernels.close()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_scores_of_any_size(kernels: native.Kernels) -> None:
    """Weights that vanish are zero, scores far from zero do not overflow."""
    held = cache(CacheFormat.FLOAT32, (16, 16), (700,))
    q = queries(2, 3, 16)
    for factor in (0.0, 1e-20, 100.0, 1e4, 1e18):
        rest = (held.table, (2,), (700,), 1, 1.0)
        out = native_attention.paged_attention(kernels, held.format, q * factor, held.pages, *rest)
        torch.testing.assert_close(
            out, reference.paged_attention(q * factor, held.decoded, *rest), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(kernels: native.Kernels, rows: int, bad: float) -> None:
    held = cache(CacheFormat.FLOAT32, (8, 8), (600,), page_size=600)
    key = held.pages.view(torch.float32)[held.table[0, 0], 70]
    key[3] = bad
    out = native_attention.paged_attention(
        kernels, held.format, torch.ones(1, rows, 8), held.pages, held.table, (1,), (600,), 1, 1.0
    )
    assert out.isnan().all()


GOOD = {"query_lengths": (2,), "context_lengths": (9,), "num_kv_heads": 2, "scale": 1.0, "format": CacheFormat.BFLOAT16}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_lengths": (3,)}, "add up to 3"),
        ({"query_lengths": (0,)}, "add up to 0"),
        ({"context_lengths": (1,)}, "query length <= context"),
        ({"context_lengths": (400,)}, "the tokens its pages hold"),
        ({"context_lengths": (9, 9)}, "different requests"),
        ({"page_table_BP": torch.tensor([[0, 99, 1]])}, "outside 0"),
        ({"page_table_BP": torch.tensor([[0, -1, 1]])}, "outside 0"),
        ({"page_table_BP": torch.zeros(1, 3, dtype=torch.int32)}, "int64"),
        ({"num_kv_heads": 3}, "cannot share 3"),
        ({"num_kv_heads": 4}, "entry of 128 bytes is expected, pages have 64"),
        ({"format": CacheFormat.FLOAT32}, "entry of 128 bytes is expected, pages have 64"),
        ({"pages_PSX": torch.zeros(3, 4, 64)}, "contiguous uint8"),
        ({"q_THd": torch.zeros(2, 4, 8).double()}, "float32"),
    ],
)
def test_what_would_read_past_an_array_is_refused(change: dict, words: str) -> None:
    kernels = native.Kernels(threads=1)
    held = cache(CacheFormat.BFLOAT16, [8] * 4, (9,))
    good = GOOD | {"q_THd": torch.zeros(2, 4, 8), "pages_PSX": held.pages, "page_table_BP": held.table}
    with pytest.raises(ValueError, match=words):
        native_attention.paged_attention(kernels, **(good | change))
    kernels.close()


@pytest.mark.parametrize(
    ("slots", "entries", "words"),
    [
        (torch.tensor([0, 20]), torch.zeros(2, 7), r"0\.\.19"),
        (torch.tensor([-1, 2]), torch.zeros(2, 7), r"0\.\.19"),
        (torch.tensor([1]), torch.zeros(2, 7), r"int64 \[2\]"),
        (torch.tensor([1, 2]), torch.zeros(2, 8), r"float32 \[T, 7\]"),
        (torch.tensor([1, 2]), torch.zeros(2, 7).half(), r"float32 \[T, 7\]"),
    ],
)
def test_what_would_write_past_the_pages_is_refused(slots: Tensor, entries: Tensor, words: str) -> None:
    kernels = native.Kernels(threads=1)
    pages = torch.zeros(4, 5, 14, dtype=torch.uint8)
    with pytest.raises(ValueError, match=words):
        native_attention.store(kernels, CacheFormat.BFLOAT16, pages, slots, entries, (3, 4))
    kernels.close()
