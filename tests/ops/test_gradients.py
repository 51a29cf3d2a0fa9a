"""The fast forms of ops where gradients are wanted, against autograd through reference.py."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tapwater import ops
from tapwater.errors import ConfigError
from tapwater.ops import gradients, gradients_experts, gradients_loss, native_training, reference, row_loops

# of the largest number; bfloat16 keeps 8 bits, and a gradient adds up a few numbers rounded to that
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
FORMS = ("torch", *native_training.INSTRUCTION_SETS)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every way the row loops can run."""
    before = native_training.instruction_set()
    if request.param == "torch":
        monkeypatch.setattr(native_training, "library", lambda: None)
        yield "torch"
        return
    try:
        native_training.force_instruction_set(request.param)
    except ConfigError:
        pytest.skip(f"no training kernels for {request.param} here")
    yield request.param
    if before is not None:
        native_training.force_instruction_set(before)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(op: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The op's output and the gradients of all inputs for one and the same random gradient of the output."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    y = op(*leaves)
    y.backward(draw(*y.shape, seed=99).to(y.dtype))
    return [y.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def assert_close(op: Callable[..., Tensor], specification: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """`op` in the inputs' dtype against the specification in float64, or float32 where it computes in that itself."""
    dtype = inputs[0].dtype
    expected = results(specification, [each.double() for each in inputs])
    found = results(op, inputs)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == (inputs[index - 1].dtype if index else ours.dtype)
        error, size = (ours.double() - theirs).abs().max(), theirs.abs().max()
        assert error <= TOLERANCE[dtype] * size + 1e-6, f"number {index}: {error} of {size}"


WIDTHS = [1, 2, 15, 16, 17, 33, 70]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(form: str, dtype: torch.dtype, width: int) -> None:
    for rows in (1, 9):
        x, weight = draw(rows, width, seed=1).to(dtype), draw(width, seed=2).to(dtype)
        assert_close(
            lambda x, w: ops.rms_norm(x, w, 0.1),
            lambda x, w: w * x / (x * x).mean(-1, True).add(0.1).sqrt(),
            [x, weight],
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu(form: str, dtype: torch.dtype, width: int) -> None:
    inputs = [draw(7, 12, seed=1), draw(width, 12, seed=2), draw(width, 12, seed=3), draw(12, width, seed=4)]
    assert_close(ops.swiglu, reference.swiglu, [each.to(dtype) for each in inputs])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["rotate_half", "rotate_interleaved"])
@pytest.mark.parametrize("pairs", [1, 3, 8, 9, 16, 35])
def test_rotations(form: str, dtype: torch.dtype, name: str, pairs: int) -> None:
    angles = draw(5, pairs, seed=1)
    cos, sin = angles.cos() * 1.3, angles.sin() * 1.3  # YaRN's factor: backward is the transpose, not the inverse
    # a part of wider heads, with NaN around it
    inputs = draw(5, 3, 2 * pairs, seed=2).to(dtype)
    surrounded = torch.nn.functional.pad(inputs, (3, 2), value=float("nan"))[..., 3:-2]
    assert_close(lambda x: getattr(ops, name)(x, cos, sin), lambda x: getattr(reference, name)(x, cos, sin), [inputs])
    torch.testing.assert_close(
        getattr(ops, name)(surrounded.requires_grad_(), cos, sin), getattr(ops, name)(inputs.requires_grad_(), cos, sin)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("nope", "rope", "value"), [(6, 4, 5), (1, 2, 9), (16, 32, 16), (33, 2, 1)])
def test_latent_heads(form: str, dtype: torch.dtype, nope: int, rope: int, value: int) -> None:
    angles = draw(6, rope // 2, seed=1)

    def together(form: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
        return lambda *inputs: torch.cat(form(*inputs, angles.cos(), angles.sin()), dim=-1)

    inputs = [draw(6, 3, nope + rope, seed=2), draw(6, 3, nope + value, seed=3), draw(6, rope, seed=4)]
    assert_close(together(ops.latent_heads), together(reference.latent_heads), [each.to(dtype) for each in inputs])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(1, 1, 1), (5, 8, 3), (60, 6, 2), (3, 30, 4)])
def test_experts(form: str, dtype: torch.dtype, tokens: int, experts: int, chosen: int) -> None:
    generator = torch.Generator().manual_seed(4)
    ids = torch.rand(tokens, experts, generator=generator).topk(chosen).indices
    kept = torch.rand(tokens, chosen, generator=generator) < 0.6
    weights = torch.rand(tokens, chosen, generator=generator)
    rest = [draw(tokens, 10, seed=1), *(draw(experts, *shape, seed=2) for shape in ((7, 10), (7, 10), (10, 7)))]
    for mask in (None, kept, torch.zeros_like(kept)):

        def dense(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, w: Tensor, mask: Tensor | None = mask) -> Tensor:
            w = w if mask is None else w * mask
            every_TED = torch.stack([reference.swiglu(x, *each) for each in zip(gate, up, down, strict=True)], dim=1)
            return (w[..., None] * every_TED[torch.arange(tokens)[:, None], ids]).sum(1)

        assert_close(
            lambda x, gate, up, down, w, mask=mask: ops.experts(x, ids, w, gate, up, down, mask),
            dense,
            [*(each.to(dtype) for each in rest), weights],
        )


def test_parts_of_experts_are_round_and_hold_every_assignment_once() -> None:
    for count in (1, 2, 7, 8, 9, 63, 100, 511, 4097):
        size = gradients_experts._round_size(count, torch.bfloat16)
        assert count <= size <= max(count * 1.125 + 8, count)
    sizes = {gradients_experts._round_size(count, torch.bfloat16) for count in range(257, 1025)}
    assert len(sizes) <= 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(1,), (20,), (3, 17, 17, 1), (40,)])
@pytest.mark.parametrize(("groups", "value"), [(4, 12), (2, 5), (1, 16)])
def test_attention(form: str, dtype: torch.dtype, lengths: tuple[int, ...], groups: int, value: int) -> None:
    tokens = sum(lengths)
    inputs = [draw(tokens, 4, 12, seed=1), draw(tokens, groups, 12, seed=2), draw(tokens, groups, value, seed=3)]
    assert_close(
        lambda q, k, v: ops.attention(q, k, v, lengths, 0.3),
        lambda q, k, v: reference.attention(q, k, v, lengths, 0.3),
        [each.to(dtype) for each in inputs],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(33, 31), (64, 96), (65, 17), (192, 128)])  # of keys and of values
def test_attention_of_wide_heads_in_strided_rows(form: str, dtype: torch.dtype, widths: tuple[int, int]) -> None:
    lengths, (key, value) = (31, 0, 33, 64), widths
    inputs = [draw(128, 4, key, seed=1), draw(128, 2, key, seed=2), draw(128, 2, value, seed=3)]
    apart = [torch.full((128, 2 * each.shape[1], each.shape[2] + 7), torch.nan) for each in inputs]
    for each, x in zip(apart, inputs, strict=True):
        each[:, ::2, 3:-4] = x
    assert_close(
        lambda q, k, v: ops.attention(q[:, ::2, 3:-4], k[:, ::2, 3:-4], v[:, ::2, 3:-4], lengths, key**-0.5),
        lambda q, k, v: reference.attention(q[:, ::2, 3:-4], k[:, ::2, 3:-4], v[:, ::2, 3:-4], lengths, key**-0.5),
        [each.to(dtype) for each in apart],
    )


def test_attention_of_what_does_not_go_together_is_refused(form: str) -> None:
    q, k = draw(8, 4, 6, seed=1).bfloat16(), draw(8, 2, 6, seed=2).bfloat16()
    for wrong, lengths in ((draw(8, 8, 6, seed=3), (8,)), (draw(8, 3, 6, seed=3), (8,)), (k, (9,)), (k, (7,)), (k, ())):
        other = wrong.bfloat16()
        with pytest.raises(ValueError, match="do not go together"):
            native_training.attention(q, other, other, lengths, 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(8,), (8, 8), (40, 8, 16), (24, 8, 8)])  # of what x of 20 is projected to
def test_projections_of_one_input(form: str, dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    inputs = [draw(50, 20, seed=1), *(draw(width, 20, seed=2 + width) for width in widths)]
    assert_close(
        lambda x, *weights: torch.cat(ops.linears(x, *weights), 1),
        lambda x, *weights: torch.cat(reference.linears(x, *weights), 1),
        [each.to(dtype) for each in inputs],
    )


def test_a_projection_takes_any_shape_and_computes_the_gradients_that_are_wanted() -> None:
    x, weight = draw(2, 5, 8, seed=1), draw(4, 8, seed=2).requires_grad_()
    y = ops.linear(x, weight)
    y.sum().backward()
    assert y.shape == (2, 5, 4) and weight.grad is not None
    for first, second in ((True, False), (False, True)):
        flat, frozen = x[0].clone().requires_grad_(first), weight.detach().clone().requires_grad_(second)
        ops.linear(flat, frozen).sum().backward()
        assert (flat.grad is not None, frozen.grad is not None) == (first, second)


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (33, 16), (64, 48), (100, 130)])
def test_transposed(form: str, shape: tuple[int, int]) -> None:
    for dtype in DTYPES:
        wide = draw(shape[0], shape[1] + 3, seed=1).to(dtype)
        assert torch.equal(native_training.transposed(wide), wide.T)
        assert torch.equal(native_training.transposed(wide[:, : shape[1]]), wide[:, : shape[1]].T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(8, 8), (8, 40), (40, 8)])  # of x and dy: alike, and either much narrower
def test_weight_gradients(form: str, dtype: torch.dtype, widths: tuple[int, int]) -> None:
    x, *dy = (draw(50, width, seed=seed).to(dtype) for seed, width in enumerate((widths[0], widths[1], widths[1])))
    for found, each in zip(gradients.weight_gradients(x, *dy), dy, strict=True):
        torch.testing.assert_close(found.double(), each.double().T @ x.double(), rtol=0.01, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1030, 2050])  # with larger blocks of queries, the last of them short
def test_attention_of_long_sequences(form: str, dtype: torch.dtype, length: int) -> None:
    inputs = [draw(length + 5, 2, 24, seed=1), draw(length + 5, 1, 24, seed=2), draw(length + 5, 1, 16, seed=3)]
    assert_close(
        lambda q, k, v: ops.attention(q, k, v, (length, 5), 0.3),
        lambda q, k, v: reference.attention(q, k, v, (length, 5), 0.3),
        [each.to(dtype) for each in inputs],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [2, 16, 50, 67])
def test_linear_cross_entropy(form: str, dtype: torch.dtype, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_loss, "CHUNK_BYTES", 1)  # chunks of 16 rows
    targets = torch.randint(vocab, (41,), generator=torch.Generator().manual_seed(1))
    for mask in (torch.ones(41).bool(), torch.arange(41) % 3 > 0, torch.zeros(41).bool()):
        inputs = [draw(41, 24, seed=2).to(dtype) / 4, draw(vocab, 24, seed=3).to(dtype)]
        assert_close(
            lambda h, w, mask=mask: ops.linear_cross_entropy(h, w, targets, mask),
            lambda h, w, mask=mask: torch.nn.functional.cross_entropy((h @ w.T)[mask], targets[mask], reduction="sum"),
            inputs,
        )


def test_targets_outside_the_vocabulary_are_refused() -> None:
    hidden, weight = draw(3, 4, seed=1).requires_grad_(), draw(5, 4, seed=2)
    for target in (-1, 5):
        with pytest.raises(IndexError):
            ops.linear_cross_entropy(hidden, weight, torch.tensor([0, target, 1]), torch.ones(3).bool())


def test_the_same_threads_give_the_same_bits(form: str) -> None:
    inputs = [draw(300, 64, seed=1).bfloat16(), draw(64, seed=2).bfloat16()]
    first, second = (results(lambda x, w: ops.rms_norm(x, w, 1e-6), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_gradients_the_reference_runs() -> None:
    x, weight = draw(3, 8, seed=1).bfloat16(), draw(8, seed=2).bfloat16().requires_grad_()
    with torch.no_grad():
        assert torch.equal(ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


def test_native_loops_do_what_torch_says(form: str) -> None:
    """What the ops above do not show: rows of -1, and the loss of each row."""
    x, rows = draw(6, 19, seed=1), torch.tensor([5, -1, 0, 0, -1])
    assert torch.equal(native_training.gather(x, rows), row_loops.gather(x, rows))
    table = torch.tensor([[1, -1], [-1, -1], [0, 5]])
    torch.testing.assert_close(native_training.combine(x, table, None), row_loops.combine(x, table, None))
    logits, targets = draw(6, 19, seed=2) * 20, torch.arange(6)
    torch.testing.assert_close(
        native_training.cross_entropy(logits.clone(), targets), row_loops.cross_entropy(logits.clone(), targets)
    )


def test_bfloat16_results_are_the_nearest_or_next_to_it(form: str) -> None:
    """The short exponential and reciprocal may turn a rounding, no more; at the ends are almost zero, and NaN."""
    ends = torch.tensor([-1e4, -104.0, -88.0, -87.0, -0.0, 0.0, 30.0, 88.0, 100.0, 1e4, float("nan")])
    gate = torch.cat([ends, 8 * draw(4085, seed=1)])[:, None].bfloat16()
    up = torch.ones_like(gate)
    found, exact = native_training.silu_product(gate, up).float(), F.silu(gate.double())
    assert (found.isnan() == gate.isnan()).all()
    spacing = torch.finfo(torch.bfloat16).eps * exact.abs()  # of two neighbours, at most
    assert ((found - exact).abs() <= spacing + 1e-33)[~gate.isnan()].all()
    assert (found == exact.bfloat16())[~gate.isnan()].float().mean() > 0.98

    logits, targets = (20 * draw(6, 1003, seed=2)).bfloat16(), torch.arange(6)
    loss = native_training.cross_entropy(logits.clone(), targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), targets, reduction="none"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 4099), (0, 4)])
def test_gradients_are_added_with_their_squares(form: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    first, second = draw(*shape, seed=1).to(dtype), draw(*shape, seed=2).to(dtype)
    total = torch.full(shape, float("nan"))
    squares = native_training.add_gradient(total, first, True)
    assert torch.equal(total, first.float())
    torch.testing.assert_close(squares, first.double().square().sum(), rtol=1e-5, atol=0)
    squares = native_training.add_gradient(total, second, False)
    assert torch.equal(total, first.float() + second.float())
    torch.testing.assert_close(squares, total.double().square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 4099), (0, 4)])
def test_weights_are_rounded_as_torch_rounds(form: str, shape: tuple[int, ...]) -> None:
    x = draw(*shape, seed=1)
    y = torch.empty(shape, dtype=torch.bfloat16)
    native_training.round_to(y, x)
    assert torch.equal(y, x.bfloat16())
    turned = torch.empty(shape[::-1], dtype=torch.bfloat16).T  # laid out in another way
    native_training.round_to(turned, x)
    assert torch.equal(turned, x.bfloat16())
