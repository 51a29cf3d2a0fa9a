"""Packing: exact for what is quantised already, nearest for what is not, against the gguf package's own quantisers."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from tapwater.ops.quant import Format, PackedWeight, pack, quantise, unpack

GGUF = {
    Format.Q4: GGMLQuantizationType.Q4_0,
    Format.Q4_MIN: GGMLQuantizationType.Q4_1,
    Format.Q8: GGMLQuantizationType.Q8_0,
}


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


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (50, 96), (1, 32), (64, 576)])
def test_gguf_blocks_are_held_without_loss(format: Format, rows: int, columns: int) -> None:
    weights = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    raw = quantize(weights, GGUF[format])
    packed = from_gguf(format, raw, columns)
    assert torch.equal(unpack(packed), torch.from_numpy(dequantize(raw, GGUF[format])))


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (5, 7), (33, 100), (64, 576)])
def test_quantising_is_as_near_as_the_gguf_package(format: Format, rows: int, columns: int) -> None:
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    error = (unpack(quantise(weights, format)) - weights).pow(2).mean().sqrt()
    padded = torch.nn.functional.pad(weights, (0, -columns % 32)).numpy()
    theirs = torch.from_numpy(dequantize(quantize(padded, GGUF[format]), GGUF[format]))[:, :columns]
    assert error <= (theirs - weights).pow(2).mean().sqrt() * 1.02
    assert error < (0.02 if format is Format.Q8 else 0.2)


@pytest.mark.parametrize("format", Format)
def test_zeros_and_constants_are_exact(format: Format) -> None:
    weights = torch.zeros(3, 64)
    weights[1] = 1.0
    weights[2, :32] = -0.5
    assert torch.allclose(unpack(quantise(weights, format)), weights, atol=1e-3)


def test_what_cannot_be_held_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        quantise(torch.full((2, 32), float("nan")), Format.Q4)
    with pytest.raises(ValueError, match="float16"):
        quantise(torch.full((2, 32), 1e30), Format.Q8)
    with pytest.raises(ValueError, match=r"-8\.\.7"):
        pack(Format.Q4, torch.full((2, 32), 8, dtype=torch.int8), torch.ones(2, 1).half(), None)
    with pytest.raises(ValueError, match="minimum"):
        pack(Format.Q4, torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 1).half(), torch.ones(2, 1).half())
    with pytest.raises(ValueError, match="scale must be float16"):
        pack(Format.Q4, torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 2).half(), None)
    good = quantise(torch.randn(16, 32), Format.Q4)
    with pytest.raises(ValueError, match="blocks of a 17 x 32"):
        PackedWeight(Format.Q4, 17, 32, good.blocks)
