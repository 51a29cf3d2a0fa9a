"""Weights in 4 and 8 bits: the format kernels read, packing, and unpacking back to exactly what they compute with.

A weight is `scale * q` or `scale * q + minimum`, with one float16 scale (and minimum) per row and group of 32 columns:

    q4      q = -8..7, scale                 4.5 bits a weight; holds GGUF's Q4_0 without loss
    q4_min  q = 0..15, scale and minimum     5 bits a weight; holds GGUF's Q4_1 without loss
    q8      q = -127..127, scale             8.5 bits a weight; holds GGUF's Q8_0 without loss

Sixteen rows by one group make a block: the q's of all rows, four columns of a row side by side, then sixteen scales,
then sixteen minima. The blocks of sixteen rows follow each other, group by group; a kernel reads them front to back.
Missing rows and columns of the last blocks are zero.
"""

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

LANES = 16
GROUP = 32


class Format(enum.StrEnum):
    """How a weight is stored; the order of members is the number kernels know it by."""

    Q4 = "q4"
    Q4_MIN = "q4_min"
    Q8 = "q8"


@dataclass(frozen=True)
class PackedWeight:
    """A quantised matrix [rows, columns]; `blocks` are the bytes, [row blocks, groups, bytes of a block]."""

    format: Format
    rows: int
    columns: int
    blocks: Tensor

    def __post_init__(self) -> None:
        expected = (-(-self.rows // LANES), -(-self.columns // GROUP), BLOCK_BYTES[self.format])
        if self.blocks.dtype != torch.uint8 or tuple(self.blocks.shape) != expected or not self.blocks.is_contiguous():
            raise ValueError(
                f"blocks of a {self.rows} x {self.columns} {self.format} matrix are contiguous uint8 {expected}, got "
                f"{self.blocks.dtype} {tuple(self.blocks.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns


BLOCK_BYTES = {
    Format.Q4: LANES * GROUP // 2 + 2 * LANES,
    Format.Q4_MIN: LANES * GROUP // 2 + 4 * LANES,
    Format.Q8: LANES * GROUP + 2 * LANES,
}


def quantise(weight_OI: Tensor, format: Format) -> PackedWeight:
    """The nearest weights in `format`: per group the scale spans its largest magnitude (q4_min: its whole range)."""
    if not weight_OI.isfinite().all():
        raise ValueError("weights to quantise must be finite")
    groups = _grouped(weight_OI.float())  # [row blocks, LANES, groups, GROUP]
    minimum = None
    if format is Format.Q4_MIN:
        low, high = groups.amin(-1), groups.amax(-1)
        scale, minimum = _half((high - low) / 15), _half(low)
        q = (groups - minimum[..., None].float()) * _inverse(scale)[..., None]
        q = q.round().clamp(0, 15)
    elif format is Format.Q4:
        # the side with the larger magnitude gets the eighth step: -8 exists, +8 does not
        largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]
        scale = _half(largest / -8)
        q = (groups * _inverse(scale)[..., None]).round().clamp(-8, 7)
    else:
        scale = _half(groups.abs().amax(-1) / 127)
        q = (groups * _inverse(scale)[..., None]).round().clamp(-127, 127)
    return _packed(format, weight_OI.shape, q.to(torch.int8), scale, minimum)


def pack(format: Format, q_OI: Tensor, scale_OG: Tensor, minimum_OG: Tensor | None) -> PackedWeight:
    """A matrix that is quantised already: int8 q [rows, columns], float16 scale and minimum [rows, groups]."""
    if (minimum_OG is None) == (format is Format.Q4_MIN):
        raise ValueError(f"minimum is given for {Format.Q4_MIN} and for no other format")
    rows, columns = q_OI.shape
    expected = (rows, -(-columns // GROUP))
    for name, each in (("scale", scale_OG), ("minimum", minimum_OG)):
        if each is not None and (tuple(each.shape) != expected or each.dtype != torch.float16):
            raise ValueError(f"{name} must be float16 {expected}, got {each.dtype} {tuple(each.shape)}")
    low, high = {Format.Q4: (-8, 7), Format.Q4_MIN: (0, 15), Format.Q8: (-127, 127)}[format]
    if q_OI.dtype != torch.int8 or int(q_OI.min()) < low or int(q_OI.max()) > high:
        raise ValueError(f"q of {format} must be int8 in {low}..{high}")
    pad = -rows % LANES
    minimum = None if minimum_OG is None else _pad_rows(minimum_OG, pad)
    return _packed(format, q_OI.shape, _grouped(q_OI), _pad_rows(scale_OG, pad), minimum)


def unpack(weight: PackedWeight) -> Tensor:
    """The float32 matrix the kernels multiply with, exactly."""
    num_blocks, num_groups, _ = weight.blocks.shape
    size = LANES * GROUP // (1 if weight.format is Format.Q8 else 2)
    data, halves = weight.blocks.split([size, weight.blocks.shape[-1] - size], dim=-1)
    if weight.format is Format.Q8:
        vectors = data.contiguous().view(torch.int8)
    else:
        vectors = torch.cat((data & 15, data >> 4), dim=-1).to(torch.int8)
        if weight.format is Format.Q4:
            vectors = vectors - 8
    q = vectors.view(num_blocks, num_groups, GROUP // 4, LANES, 4).permute(0, 3, 1, 2, 4).flatten(-2)
    scales = halves.contiguous().view(torch.float16).view(num_blocks, num_groups, -1, LANES).permute(2, 0, 3, 1).float()
    dense = q.float() * scales[0][..., None]
    if weight.format is Format.Q4_MIN:
        dense = dense + scales[1][..., None]
    return dense.flatten(0, 1).flatten(1)[: weight.rows, : weight.columns].contiguous()


def _packed(format: Format, shape: tuple[int, ...], q: Tensor, scale: Tensor, minimum: Tensor | None) -> PackedWeight:
    """Interleave int8 q [row blocks, LANES, groups, GROUP] with its scales [row blocks, LANES, groups]."""
    num_blocks, _, num_groups, _ = q.shape
    vectors = q.unflatten(-1, (GROUP // 4, 4)).permute(0, 2, 3, 1, 4)  # [row blocks, groups, vector, row, column]
    if format is Format.Q8:
        data = vectors.contiguous().view(torch.uint8)
    else:
        nibbles = (vectors + (8 if format is Format.Q4 else 0)).to(torch.uint8)
        data = nibbles[:, :, : GROUP // 8] | nibbles[:, :, GROUP // 8 :] << 4
    halves = torch.stack([each for each in (scale, minimum) if each is not None])  # [1 or 2, row blocks, LANES, groups]
    halves = halves.permute(1, 3, 0, 2).contiguous().view(torch.uint8)
    blocks = torch.cat((data.reshape(num_blocks, num_groups, -1), halves.reshape(num_blocks, num_groups, -1)), dim=-1)
    return PackedWeight(format, shape[0], shape[1], blocks.contiguous())


def _grouped(matrix_OI: Tensor) -> Tensor:
    rows, columns = matrix_OI.shape
    padded = torch.nn.functional.pad(matrix_OI, (0, -columns % GROUP, 0, -rows % LANES))
    return padded.view(-1, LANES, padded.shape[1] // GROUP, GROUP)


def _pad_rows(scale_OG: Tensor, pad: int) -> Tensor:
    return torch.nn.functional.pad(scale_OG, (0, 0, 0, pad)).view(-1, LANES, scale_OG.shape[1])


def _half(x: Tensor) -> Tensor:
    half = x.to(torch.float16)
    if not half.isfinite().all():
        raise ValueError("a group's scale does not fit float16: weights beyond 65504 cannot be quantised")
    return half


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1.0 / scale.float())
