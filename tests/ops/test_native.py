"""Every instruction set this machine runs against the reference, over odd shapes; batches never change a row."""

from collections.abc import Iterator

import pytest
import torch

from ops.paging import RAGGED, poisoned_pages
from tapwater.errors import ConfigError
from tapwater.ops import native, reference
from tapwater.ops.quant import Format, quantise

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the kernels are not built here: no C++ compiler")


def runs_here(name: str) -> bool:
    before = native.instruction_set()
    try:
        native.force_instruction_set(name)
    except ConfigError:
        return False
    native.force_instruction_set(before)
    return True


@pytest.fixture(scope="module", params=native.INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[native.Kernels]:
    if not runs_here(request.param):
        pytest.skip(f"this processor has no {request.param}")
    before = native.instruction_set()
    native.force_instruction_set(request.param)
    assert native.instruction_set() == request.param
    kernels = native.Kernels(threads=2)
    yield kernels
    kernels.close()
    native.force_instruction_set(before)


def noise(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("outputs", "columns"), [(16, 32), (1, 1), (50, 70), (17, 33), (576, 576), (130, 1408)])
def test_linear_is_the_reference(kernels: native.Kernels, format: Format, outputs: int, columns: int) -> None:
    weight = quantise(noise(outputs, columns, 0), format)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 37):
        x = noise(rows, columns, rows) * 3
        expected = reference.packed_linear(x, weight)
        torch.testing.assert_close(kernels.linear(x, weight), expected, atol=3e-5 * columns**0.5 * 3, rtol=1e-4)


@pytest.mark.parametrize("format", Format)
def test_a_row_is_the_same_bits_in_any_batch(kernels: native.Kernels, format: Format) -> None:
    weight = quantise(noise(80, 96, 0), format)
    x = noise(512, 96, 1)
    whole = kernels.linear(x, weight)
    for start, stop in ((0, 1), (3, 4), (5, 13), (100, 131), (511, 512)):
        assert torch.equal(kernels.linear(x[start:stop], weight), whole[start:stop])


@pytest.mark.parametrize("format", Format)
def test_extreme_rows(kernels: native.Kernels, format: Format) -> None:
    weight = quantise(noise(32, 64, 0), format)
    x = torch.zeros(4, 64)
    x[1] = 1e-30
    x[2] = 1e30
    x[3, 5] = -7.0
    torch.testing.assert_close(kernels.linear(x, weight), reference.packed_linear(x, weight), rtol=1e-4, atol=1e-4)
    assert not kernels.linear(x, weight)[0].any()


@pytest.mark.parametrize(("query", "context"), RAGGED)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 32), (4, 2, 8), (9, 3, 64), (4, 1, 20), (2, 1, 256)])
def test_paged_attention_is_the_reference(
    kernels: native.Kernels, query: tuple, context: tuple, heads: int, kv_heads: int, dim: int
) -> None:
    pages, table, _ = poisoned_pages(context, 2 * kv_heads * dim)
    q = torch.randn(sum(query), heads, dim, generator=torch.Generator().manual_seed(1))
    arguments = (pages, table, query, context, kv_heads, dim**-0.5)
    out = kernels.paged_attention(q, *arguments)
    torch.testing.assert_close(out, reference.paged_attention(q, *arguments), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("query", "context"), RAGGED)
@pytest.mark.parametrize(("heads", "rank", "rope"), [(3, 12, 4), (16, 512, 64), (2, 24, 10)])
def test_paged_mla_absorb_is_the_reference(
    kernels: native.Kernels, query: tuple, context: tuple, heads: int, rank: int, rope: int
) -> None:
    pages, table, _ = poisoned_pages(context, rank + rope)
    q = torch.randn(sum(query), heads, rank + rope, generator=torch.Generator().manual_seed(2))
    arguments = (pages, table, query, context, rank, (rank + rope) ** -0.5)
    out = kernels.paged_mla_absorb(q, *arguments)
    torch.testing.assert_close(out, reference.paged_mla_absorb(q, *arguments), atol=1e-5, rtol=1e-5)


def test_attention_is_the_same_bits_in_any_batch_and_chunk(kernels: native.Kernels) -> None:
    context = (37, 5, 64)
    pages, table, _ = poisoned_pages(context, 2 * 2 * 16)
    q = torch.randn(37, 4, 16, generator=torch.Generator().manual_seed(3))
    whole = kernels.paged_attention(q, pages, table[:1], (37,), (37,), 2, 0.25)
    for start, stop in ((36, 37), (0, 1), (5, 20)):
        chunk = kernels.paged_attention(q[start:stop], pages, table[:1], (stop - start,), (stop,), 2, 0.25)
        assert torch.equal(chunk, whole[start:stop])
    strangers = torch.randn(66, 4, 16, generator=torch.Generator().manual_seed(4))
    batch = torch.cat((strangers[:2], q[30:37], strangers[2:]))
    order = table[[1, 0, 2]].contiguous()
    together = kernels.paged_attention(batch, pages, order, (2, 7, 64), (5, 37, 64), 2, 0.25)
    assert torch.equal(together[2:9], whole[30:37])


def test_large_scores_do_not_overflow(kernels: native.Kernels) -> None:
    pages, table, _ = poisoned_pages((40,), 2 * 16)
    q = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(5)) * 1e3
    out = kernels.paged_attention(q, pages, table, (1,), (40,), 1, 1.0)
    torch.testing.assert_close(out, reference.paged_attention(q, pages, table, (1,), (40,), 1, 1.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_lengths": (3,)}, "add up to 3"),
        ({"context_lengths": (1,)}, "query length <= context"),
        ({"context_lengths": (400,)}, "the tokens its pages hold"),
        ({"context_lengths": (9, 9)}, "different requests"),
        ({"page_table_BP": torch.tensor([[0, 99, 1]])}, "outside 0"),
        ({"page_table_BP": torch.tensor([[0, -1, 1]])}, "outside 0"),
        ({"page_table_BP": torch.zeros(1, 3, dtype=torch.int32)}, "int64"),
        ({"num_kv_heads": 3}, "is not 32 numbers"),
        ({"q_THd": torch.zeros(2, 4, 8).double()}, "float32"),
    ],
)
def test_what_would_read_past_an_array_is_refused(change: dict, words: str) -> None:
    kernels = native.Kernels(threads=1)
    pages, table, _ = poisoned_pages((9,), 32)
    good = {"q_THd": torch.zeros(2, 4, 8), "pages_PSX": pages, "page_table_BP": table, "query_lengths": (2,)}
    good |= {"context_lengths": (9,), "num_kv_heads": 2, "scale": 1.0}
    with pytest.raises(ValueError, match=words):
        kernels.paged_attention(**(good | change))
    kernels.close()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    weight, x = quantise(noise(1000, 256, 0), Format.Q4_MIN), noise(30, 256, 1)
    results = []
    for threads in (1, 2, 3):
        kernels = native.Kernels(threads)
        results.append(kernels.linear(x, weight))
        kernels.close()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_many_calls_in_a_row_agree() -> None:
    kernels = native.Kernels(threads=2)
    weight, x = quantise(noise(64, 64, 0), Format.Q4), noise(3, 64, 1)
    first = kernels.linear(x, weight)
    assert all(torch.equal(kernels.linear(x, weight), first) for _ in range(2000))
    kernels.close()


@pytest.mark.parametrize("x", [torch.zeros(2, 63), torch.zeros(64), torch.zeros(2, 64).double()])
def test_a_wrong_input_is_refused(x: torch.Tensor) -> None:
    kernels = native.Kernels(threads=1)
    with pytest.raises(ValueError, match=r"float32 \[rows, 64\]"):
        kernels.linear(x, quantise(noise(16, 64, 0), Format.Q4))
    kernels.close()


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sse9'"):
        native.force_instruction_set("sse9")
