"""Packing: exact for what is quantised already, nearest for what is not, against the gguf package's own quantisers."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from tapwater.ops.quant import (
    BLOCK_BYTES,
    STEPS,
    Format,
    PackedWeight,
    deviation,
    pack,
    quantise,
    stack,
    unpack,
    unpack_rows,
)

GGUF = {
    Format.Q4: GGMLQuantizationType.Q4_0,
    Format.Q4_MIN: GGMLQuantizationType.Q4_1,
    Format.Q8: GGMLQuantizationType.Q8_0,
    Format.BF16: GGMLQuantizationType.BF16,
}


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def from_gguf(format: Format, raw: np.ndarray, columns: int) -> PackedWeight:
    """The blocks of a GGUF tensor, read by its published layout: fp16 scale, fp16 minimum (Q4_1), then 32 values."""
    rows = raw.shape[0]
    blocks = torch.from_numpy(raw.copy()).view(rows, columns // 32, -1)
    scale = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    if format is Format.Q8:
        return pack(format, blocks[..., 2:].contiguous().view(torch.int8).flatten(1), scale, None)
    minimum = blocks[..., 2:4].contiguous().view(torch.float16)[..., 0] if format is Format.Q4_MIN else None
    nibbles = blocks[..., 2 if minimum is None else 4 :]
    q = torch.cat((nibbles & 15, nibbles >> 4), -1).to(torch.int8) - (8 if minimum is None else 0)
    return pack(format, q.flatten(1), scale, minimum)


@pytest.mark.parametrize("format", STEPS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (50, 96), (1, 32), (64, 576)])
def test_gguf_blocks_are_held_without_loss(format: Format, rows: int, columns: int) -> None:
    weights = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    raw = quantize(weights, GGUF[format])
    packed = from_gguf(format, raw, columns)
    assert torch.equal(unpack(packed), torch.from_numpy(dequantize(raw, GGUF[format])))


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (5, 7), (33, 100), (64, 576)])
def test_quantising_is_as_near_as_the_gguf_package(format: Format, rows: int, columns: int) -> None:
    weights = noise(rows, columns)
    error = (unpack(quantise(weights, format)) - weights).pow(2).mean().sqrt()
    padded = torch.nn.functional.pad(weights, (0, -columns % 32)).numpy()
    theirs = torch.from_numpy(dequantize(quantize(padded, GGUF[format]), GGUF[format]))[:, :columns]
    assert error <= (theirs - weights).pow(2).mean().sqrt() * 1.02
    assert error < {Format.Q8: 0.02, Format.BF16: 0.003}.get(format, 0.2)


def test_fitting_the_minimum_beats_the_bare_range() -> None:
    weights = noise(256, 512)
    theirs = torch.from_numpy(dequantize(quantize(weights.numpy(), GGUF[Format.Q4_MIN]), GGUF[Format.Q4_MIN]))
    error, norm = deviation(quantise(weights, Format.Q4_MIN), weights)
    assert error < 0.9 * float((theirs - weights).double().pow(2).sum())
    assert norm == pytest.approx(float(weights.double().pow(2).sum()))


HARD = {
    "normal": noise(50, 100),
    "one column": noise(20, 1),
    "float16 subnormal scales": noise(64, 96) * 1e-5,
    "scales that vanish": noise(64, 96) * 3e-7,
    "every magnitude": noise(300, 64)
    * 10 ** (torch.rand(300, 64, generator=torch.Generator().manual_seed(2)) * 10 - 8),
    "rows of every magnitude": noise(300, 70) * 10 ** (torch.linspace(-9, 3, 300)[:, None]),
    "narrow ranges far from zero": noise(300, 70) * 10 ** (torch.linspace(-7, 0, 300)[:, None]) - 1,
    "constants": torch.linspace(-3, 3, 200)[:, None].expand(200, 40),
    "outliers": torch.where(noise(64, 64, seed=3) > 2, noise(64, 64) * 1e4, 0.0),
    "zeros": torch.zeros(4, 40),
    "negative zeros": -torch.zeros(4, 40),
}


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("kind", HARD)
def test_quantising_again_changes_no_bit(format: Format, kind: str) -> None:
    once = quantise(HARD[kind], format)
    again = quantise(unpack(once), format)
    assert torch.equal(again.blocks, once.blocks)


@pytest.mark.parametrize("format", STEPS)
def test_what_gguf_quantised_is_found_again_from_floats(format: Format) -> None:
    """Its groups span their range, as the gguf package and llama.cpp write them: not one value moves."""
    weights = torch.from_numpy(dequantize(quantize(noise(64, 320).numpy(), GGUF[format]), GGUF[format]))
    assert torch.equal(unpack(quantise(weights, format)), weights)


@pytest.mark.parametrize("format", Format)
def test_zeros_and_constants_are_exact(format: Format) -> None:
    weights = torch.zeros(3, 64)
    weights[1] = 1.0
    weights[2, :32] = -0.5
    assert torch.allclose(unpack(quantise(weights, format)), weights, atol=1e-3)


def test_bfloat16_is_held_exactly_and_rounded_to_even() -> None:
    weights = noise(40, 50).bfloat16()
    assert torch.equal(unpack(quantise(weights, Format.BF16)), weights.float())
    halfway = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8]])
    assert unpack(quantise(halfway, Format.BF16)).tolist() == [[1.0, 1 + 2**-6]]


def test_the_layout_of_a_bfloat16_block() -> None:
    """[16 column pairs][16 rows][2 columns]: kernels are written against this."""
    weights = torch.arange(16 * 32).float().view(16, 32) / 4  # few enough bits for bfloat16 up to 64
    blocks = quantise(weights.remainder(32), Format.BF16).blocks
    assert blocks.shape == (1, 1, 1, 1024)
    values = blocks.view(torch.bfloat16).view(16, 16, 2)
    for pair, row, column in ((0, 0, 0), (0, 0, 1), (3, 5, 1), (15, 15, 0)):
        assert values[pair, row, column] == weights[row, 2 * pair + column].remainder(32)


def test_the_layout_of_an_eight_bit_block() -> None:
    """[8 vectors][16 rows][4 columns], then sixteen scales."""
    q = (torch.arange(16 * 32) % 255 - 127).to(torch.int8).view(16, 32)
    scale = torch.arange(16).half()[:, None]
    block = pack(Format.Q8, q, scale, None).blocks[0, 0, 0]
    values = block[:512].view(torch.int8).view(8, 16, 4)
    for vector, row, column in ((0, 0, 0), (0, 0, 3), (2, 7, 1), (7, 15, 3)):
        assert values[vector, row, column] == q[row, 4 * vector + column]
    assert torch.equal(block[512:].view(torch.float16), scale[:, 0])


@pytest.mark.parametrize("format", Format)
def test_stacks(format: Format) -> None:
    matrices = [noise(20, 40, seed=seed) for seed in range(3)]
    packed = [quantise(matrix, format) for matrix in matrices]
    whole = stack(packed)
    assert (whole.count, whole.shape, whole.blocks.shape) == (3, (20, 40), (3, 2, 2, BLOCK_BYTES[format]))
    assert torch.equal(unpack(whole), torch.stack([unpack(each) for each in packed]))
    assert whole.matrix(2).blocks.data_ptr() == whole.blocks[2].data_ptr()
    assert torch.equal(unpack(whole.matrix(2)), unpack(packed[2]))
    assert whole.nbytes == 3 * packed[0].nbytes


@pytest.mark.parametrize("format", Format)
def test_single_rows(format: Format) -> None:
    packed = quantise(noise(50, 70), format)
    rows = torch.tensor([49, 0, 16, 16, 15])
    assert torch.equal(unpack_rows(packed, rows), unpack(packed)[rows])


@pytest.mark.parametrize("format", Format)
def test_a_matrix_of_many_slices_is_the_same_as_its_parts(format: Format) -> None:
    weights = noise(600, 4096)
    whole = quantise(weights, format)
    assert torch.equal(whole.blocks[:, 10:20], quantise(weights[160:320], format).blocks)
    assert torch.equal(unpack(whole)[160:320], unpack(quantise(weights[160:320], format)))
    error, norm = deviation(whole, weights)
    assert error == pytest.approx(float((unpack(whole) - weights).double().pow(2).sum()))
    assert norm == pytest.approx(float(weights.double().pow(2).sum()))


def test_what_cannot_be_held_is_refused() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        for format in Format:
            weights = noise(40, 64)
            weights[33, 5] = bad
            with pytest.raises(ValueError, match="finite"):
                quantise(weights, format)
    for format in STEPS:
        with pytest.raises(ValueError, match="float16"):
            quantise(torch.full((2, 32), 1e30), format)
    with pytest.raises(ValueError, match="bfloat16"):
        quantise(torch.full((2, 32), 3.4e38), Format.BF16)
    with pytest.raises(ValueError, match=r"-8\.\.7"):
        pack(Format.Q4, torch.full((2, 32), 8, dtype=torch.int8), torch.ones(2, 1).half(), None)
    with pytest.raises(ValueError, match=r"-127\.\.127"):
        pack(Format.Q8, torch.full((2, 32), -128, dtype=torch.int8), torch.ones(2, 1).half(), None)
    with pytest.raises(ValueError, match="minimum"):
        pack(Format.Q4, torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 1).half(), torch.ones(2, 1).half())
    with pytest.raises(ValueError, match="no steps"):
        pack(Format.BF16, torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 1).half(), None)
    with pytest.raises(ValueError, match="scale must be float16"):
        pack(Format.Q4, torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 2).half(), None)
    good = quantise(noise(16, 32), Format.Q4)
    with pytest.raises(ValueError, match="blocks of 1 x 17 x 32"):
        PackedWeight(Format.Q4, 17, 32, good.blocks)
    with pytest.raises(ValueError, match="blocks of 1 x 16 x 32"):
        PackedWeight(Format.Q4, 16, 32, good.blocks[0])
    with pytest.raises(ValueError, match="one format and shape"):
        stack([good, quantise(noise(16, 32), Format.Q8)])
    with pytest.raises(ValueError, match="not from a stack"):
        unpack_rows(stack([good, good]), torch.tensor([0]))
