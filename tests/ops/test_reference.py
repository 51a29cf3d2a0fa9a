"""Each op against a few lines of its definition, over ragged lengths, with NaN in every slot that is not in use."""

import pytest
import torch
from torch import Tensor

from ops.paging import RAGGED, poisoned_pages
from tapwater import ops


def attend_slowly(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One head: queries are the last len(q) positions; softmax over all earlier ones and itself, in float64."""
    out = []
    for row, query in enumerate(q.double()):
        visible = keys.shape[0] - q.shape[0] + row + 1
        weights = (keys[:visible].double() @ query * scale).softmax(0)
        out.append(weights @ values[:visible].double())
    return torch.stack(out).float()


@pytest.mark.parametrize(("query", "context"), RAGGED)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (9, 3)])
def test_paged_attention(query: tuple[int, ...], context: tuple[int, ...], heads: int, kv_heads: int) -> None:
    dim = 8
    pages, table, entries = poisoned_pages(context, 2 * kv_heads * dim)
    q = torch.randn(sum(query), heads, dim, generator=torch.Generator().manual_seed(1))
    out = ops.paged_attention(q, pages, table, query, context, kv_heads, 0.3)
    assert out.isfinite().all()
    for rows, expected_q, entry in zip(out.split(query), q.split(query), entries, strict=True):
        keys, values = entry.unflatten(-1, (2, kv_heads, dim)).unbind(1)
        for head in range(heads):
            group = head // (heads // kv_heads)
            expected = attend_slowly(expected_q[:, head], keys[:, group], values[:, group], 0.3)
            torch.testing.assert_close(rows[:, head], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("query", "context"), RAGGED)
def test_both_forms_of_paged_mla(query: tuple[int, ...], context: tuple[int, ...]) -> None:
    heads, nope, rope, value, rank, scale = 3, 6, 4, 5, 12, 0.2
    pages, table, entries = poisoned_pages(context, rank + rope)
    generator = torch.Generator().manual_seed(2)
    q_nope = torch.randn(sum(query), heads, nope, generator=generator)
    q_rope = torch.randn(sum(query), heads, rope, generator=generator)
    kv_b = torch.randn(heads, nope + value, rank, generator=generator) * rank**-0.5
    expanded = ops.paged_mla_expand(torch.cat((q_nope, q_rope), -1), kv_b, pages, table, query, context, nope, scale)
    q_latent = torch.einsum("thn,hnc->thc", q_nope, kv_b[:, :nope])
    attended = ops.paged_mla_absorb(torch.cat((q_latent, q_rope), -1), pages, table, query, context, rank, scale)
    absorbed = torch.einsum("thc,hvc->thv", attended, kv_b[:, nope:])
    torch.testing.assert_close(absorbed, expanded, atol=1e-5, rtol=0)
    q = torch.cat((q_nope, q_rope), -1)
    for rows, expected_q, entry in zip(expanded.split(query), q.split(query), entries, strict=True):
        latent, k_rope = entry.split([rank, rope], -1)
        for head in range(heads):
            keys = torch.cat((latent @ kv_b[head, :nope].T, k_rope), -1)
            expected = attend_slowly(expected_q[:, head], keys, latent @ kv_b[head, nope:].T, scale)
            torch.testing.assert_close(rows[:, head], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [(1,), (7,), (3, 3, 3), (1, 5, 5, 2)])
def test_uncached_attention_keeps_sequences_apart(lengths: tuple[int, ...]) -> None:
    heads, kv_heads, dim, value = 4, 2, 6, 3
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(sum(lengths), heads, dim, generator=generator)
    k = torch.randn(sum(lengths), kv_heads, dim, generator=generator)
    v = torch.randn(sum(lengths), kv_heads, value, generator=generator)
    out = ops.attention(q, k, v, lengths, 0.4)
    for rows, each_q, each_k, each_v in zip(
        out.split(lengths), q.split(lengths), k.split(lengths), v.split(lengths), strict=True
    ):
        for head in range(heads):
            expected = attend_slowly(each_q[:, head], each_k[:, head // 2], each_v[:, head // 2], 0.4)
            torch.testing.assert_close(rows[:, head], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(1, 1, 1), (5, 8, 3), (40, 6, 2), (3, 30, 4)])
def test_experts_equal_a_loop_over_tokens(tokens: int, experts: int, chosen: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(tokens, 10, generator=generator)
    gate, up = (torch.randn(experts, 7, 10, generator=generator) for _ in range(2))
    down = torch.randn(experts, 10, 7, generator=generator)
    ids = torch.rand(tokens, experts, generator=generator).topk(chosen).indices
    weights = torch.rand(tokens, chosen, generator=generator)
    kept = torch.rand(tokens, chosen, generator=generator) < 0.6
    for mask in (None, kept, torch.zeros_like(kept)):
        out = ops.experts(x, ids, weights, gate, up, down, mask)
        for token in range(tokens):
            expected = torch.zeros(10)
            for slot in range(chosen):
                if mask is None or mask[token, slot]:
                    expert = ids[token, slot]
                    hidden = torch.nn.functional.silu(gate[expert] @ x[token]) * (up[expert] @ x[token])
                    expected += weights[token, slot] * (down[expert] @ hidden)
            torch.testing.assert_close(out[token], expected, atol=2e-5, rtol=1e-5)


def test_both_layouts_rotate_by_the_same_angles() -> None:
    x = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(5))
    angles = torch.randn(5, 4, generator=torch.Generator().manual_seed(6))
    turned = ops.rotate_interleaved(x, angles.cos(), angles.sin())
    expected = (
        torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * torch.polar(torch.ones(5, 4), angles)[:, None]
    )
    torch.testing.assert_close(turned, torch.view_as_real(expected).flatten(-2))
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    expected_halves = torch.cat((turned[..., 0::2], turned[..., 1::2]), -1)
    torch.testing.assert_close(ops.rotate_half(halves, angles.cos(), angles.sin()), expected_halves)
