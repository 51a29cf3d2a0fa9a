"""Weights in 4, 8 and 16 bits: the formats kernels read, packing, and unpacking to exactly what they compute with.

A weight is `scale * q` or `scale * q + minimum`, with one float16 scale (and minimum) per row and group of 32 columns:

    q4      q = -8..7, scale                 4.5 bits a weight; holds GGUF's Q4_0 without loss
    q4_min  q = 0..15, scale and minimum     5 bits a weight; holds GGUF's Q4_1 without loss
    q8      q = -127..127, scale             8.5 bits a weight; holds GGUF's Q8_0 without loss
    bf16    bfloat16, no scale               16 bits a weight

Sixteen rows by one group make a block: the q's of all rows, four columns of a row side by side (of bf16 two), then
sixteen scales, then sixteen minima. The blocks of sixteen rows follow each other, group by group; a kernel reads them
front to back. Missing rows are zero, and so are the q's of missing columns: those of q4_min then stand for the minimum,
which activations of zero must silence.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tapwater.ops.fit import fit_q4, fit_q4_min, fit_q8

LANES = 16
GROUP = 32
SLICE = 2**20  # weights handled at a time: temporaries stay small


class Format(enum.StrEnum):
    """How a weight is stored; the order of members is the number kernels know it by."""

    Q4 = "q4"
    Q4_MIN = "q4_min"
    Q8 = "q8"
    BF16 = "bf16"


STEPS = {Format.Q4: (-8, 7), Format.Q4_MIN: (0, 15), Format.Q8: (-127, 127)}
DATA_BYTES = {
    Format.Q4: LANES * GROUP // 2,
    Format.Q4_MIN: LANES * GROUP // 2,
    Format.Q8: LANES * GROUP,
    Format.BF16: LANES * GROUP * 2,
}
NUM_HALVES = {Format.Q4: 1, Format.Q4_MIN: 2, Format.Q8: 1, Format.BF16: 0}  # of a row and group
BLOCK_BYTES = {format: DATA_BYTES[format] + NUM_HALVES[format] * 2 * LANES for format in Format}


def blocks_shape(format: Format, rows: int, columns: int, count: int) -> tuple[int, int, int, int]:
    """The shape of `PackedWeight.blocks`, whose product is the bytes they take."""
    return count, -(-rows // LANES), -(-columns // GROUP), BLOCK_BYTES[format]


@dataclass(frozen=True)
class PackedWeight:
    """`count` matrices [rows, columns]; `blocks` are the bytes, [count, row blocks, groups, bytes of a block].

    Several are a stack, such as the experts of a layer; each of them is padded to sixteen rows on its own.
    """

    format: Format
    rows: int
    columns: int
    blocks: Tensor
    count: int = 1

    def __post_init__(self) -> None:
        expected = blocks_shape(self.format, self.rows, self.columns, self.count)
        if self.blocks.dtype != torch.uint8 or tuple(self.blocks.shape) != expected or not self.blocks.is_contiguous():
            raise ValueError(
                f"blocks of {self.count} x {self.rows} x {self.columns} {self.format} are contiguous uint8 {expected}, "
                f"got {self.blocks.dtype} {tuple(self.blocks.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one matrix."""
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def matrix(self, index: int) -> "PackedWeight":
        """One matrix of a stack; it shares the memory."""
        return PackedWeight(self.format, self.rows, self.columns, self.blocks[index : index + 1])


def quantise(weight_OI: Tensor, format: Format) -> PackedWeight:
    """The nearest weights in `format`; quantising what `unpack` gives back changes no bit.

    Raises ValueError for weights that are not finite, or larger than float16 (bf16: bfloat16) can hold.
    """
    rows, columns = weight_OI.shape
    blocks = torch.empty(blocks_shape(format, rows, columns, 1), dtype=torch.uint8)
    for held, some in _slices(rows, blocks):
        part = weight_OI[some]
        if not _is_finite(part):
            raise ValueError("weights to quantise must be finite")
        if format is Format.BF16:
            part = part.to(torch.bfloat16)
            if not _is_finite(part):
                raise ValueError("a weight does not fit bfloat16")
            _write_data(blocks[0, held], format, _grouped(part))
        elif format is Format.Q4_MIN:
            missing = -columns % GROUP
            # while fitting, the last column stands for those that are missing: zeros would widen the range
            part = F.pad(part.float(), (0, missing), mode="replicate") if missing else part.float()
            q, scale, minimum = fit_q4_min(_grouped(part))
            q[:, :, -1, GROUP - missing :] = 0
            _write(blocks[0, held], format, q, scale, minimum)
        else:
            fit = fit_q4 if format is Format.Q4 else fit_q8
            _write(blocks[0, held], format, *fit(_grouped(part.float())))
    return PackedWeight(format, rows, columns, blocks)


def pack(format: Format, q_OI: Tensor, scale_OG: Tensor, minimum_OG: Tensor | None) -> PackedWeight:
    """A matrix that is quantised already: int8 q [rows, columns], float16 scale and minimum [rows, groups].

    bf16 has no steps and is refused; `quantise` holds bfloat16 exactly.
    """
    if format not in STEPS:
        raise ValueError(f"{format} has no steps to pack")
    if (minimum_OG is None) == (format is Format.Q4_MIN):
        raise ValueError(f"minimum is given for {Format.Q4_MIN} and for no other format")
    rows, columns = q_OI.shape
    expected = (rows, -(-columns // GROUP))
    for name, each in (("scale", scale_OG), ("minimum", minimum_OG)):
        if each is not None and (tuple(each.shape) != expected or each.dtype != torch.float16):
            raise ValueError(f"{name} must be float16 {expected}, got {each.dtype} {tuple(each.shape)}")
    low, high = STEPS[format]
    if q_OI.dtype != torch.int8 or int(q_OI.min()) < low or int(q_OI.max()) > high:
        raise ValueError(f"q of {format} must be int8 in {low}..{high}")
    blocks = torch.empty(blocks_shape(format, rows, columns, 1), dtype=torch.uint8)
    halves = [each for each in (scale_OG, minimum_OG) if each is not None]
    for held, some in _slices(rows, blocks):
        _write(blocks[0, held], format, _grouped(q_OI[some]), *(_lanes(each[some]) for each in halves))
    return PackedWeight(format, rows, columns, blocks)


def stack(weights: Sequence[PackedWeight]) -> PackedWeight:
    """Matrices of one format and shape as one weight."""
    first = weights[0]
    if any((each.format, each.shape) != (first.format, first.shape) for each in weights):
        raise ValueError("only matrices of one format and shape make a stack")
    blocks = torch.cat([each.blocks for each in weights])
    return PackedWeight(first.format, first.rows, first.columns, blocks, len(blocks))


def unpack(weight: PackedWeight) -> Tensor:
    """The float32 matrix the kernels multiply with, exactly; of a stack [count, rows, columns]."""
    dense = torch.empty(weight.count, weight.rows, weight.columns)
    for index in range(weight.count):
        for held, some in _slices(weight.rows, weight.blocks):
            part = dense[index, some]
            part.copy_(_read(weight.blocks[index, held], weight.format)[: len(part), : weight.columns])
    return dense if weight.count > 1 else dense[0]


def unpack_rows(weight: PackedWeight, rows_R: Tensor) -> Tensor:
    """Some rows of a matrix, float32 [R, columns], as an embedding is read."""
    if weight.count != 1:
        raise ValueError("rows are taken from one matrix, not from a stack")
    lanes_RLI = _read(weight.blocks[0, rows_R // LANES], weight.format).unflatten(0, (-1, LANES))
    return lanes_RLI[torch.arange(len(rows_R)), rows_R % LANES, : weight.columns]


def deviation(weight: PackedWeight, dense_OI: Tensor) -> tuple[float, float]:
    """The squared error of a matrix that stands for `dense_OI`, and the squared norm of the latter."""
    error = norm = 0.0
    for held, some in _slices(weight.rows, weight.blocks):
        part = dense_OI[some].float()
        found = _read(weight.blocks[0, held], weight.format)[: len(part), : weight.columns]
        error += float((found - part).square_().sum(dtype=torch.float64))
        norm += float(part.square().sum(dtype=torch.float64))
    return error, norm


def _is_finite(x: Tensor) -> bool:
    return bool(torch.stack(x.aminmax()).isfinite().all())  # NaN is both least and greatest


def _slices(rows: int, blocks: Tensor) -> Iterator[tuple[slice, slice]]:
    """Row blocks, and the rows in them, about SLICE weights at a time."""
    step = max(1, SLICE // (LANES * GROUP * blocks.shape[2]))
    for start in range(0, blocks.shape[1], step):
        yield slice(start, start + step), slice(start * LANES, min(rows, (start + step) * LANES))


def _write(blocks: Tensor, format: Format, q: Tensor, *halves: Tensor) -> None:
    """Int8 q [row blocks, LANES, groups, GROUP], float16 scale and minimum [row blocks, LANES, groups]."""
    _write_data(blocks, format, q)
    for index, half in enumerate(halves):
        start = DATA_BYTES[format] + index * 2 * LANES
        blocks[..., start : start + 2 * LANES] = half.transpose(1, 2).contiguous().view(torch.uint8)


def _write_data(blocks: Tensor, format: Format, values: Tensor) -> None:
    # four bytes of a row, one column to four, move as one number
    vectors = values.contiguous().view(torch.int32).permute(0, 2, 3, 1).contiguous().view(torch.uint8).flatten(2)
    if DATA_BYTES[format] < LANES * GROUP:
        low, high = vectors.add_(8 if format is Format.Q4 else 0).chunk(2, -1)
        vectors = high.bitwise_left_shift(4).bitwise_or_(low)
    blocks[..., : DATA_BYTES[format]] = vectors


def _read(blocks: Tensor, format: Format) -> Tensor:
    """The float32 rows and columns of blocks [row blocks, groups, bytes], padding included."""
    data, halves = blocks.split([DATA_BYTES[format], BLOCK_BYTES[format] - DATA_BYTES[format]], dim=-1)
    if DATA_BYTES[format] < LANES * GROUP:
        data = torch.cat((data & 15, data >> 4), dim=-1).sub_(8 if format is Format.Q4 else 0)
    words = data.contiguous().view(torch.int32).unflatten(-1, (-1, LANES)).permute(0, 3, 1, 2).contiguous()
    if format is Format.BF16:
        return words.view(torch.bfloat16).flatten(0, 1).flatten(1).float()
    numbers = halves.contiguous().view(torch.float16).unflatten(-1, (-1, LANES)).permute(2, 0, 3, 1).float()
    dense = words.view(torch.int8) * numbers[0][..., None]
    if format is Format.Q4_MIN:
        dense += numbers[1][..., None]
    return dense.flatten(0, 1).flatten(1)


def _grouped(matrix_OI: Tensor) -> Tensor:
    """[row blocks, LANES, groups, GROUP], with zeros for what is missing."""
    rows, columns = matrix_OI.shape
    if rows % LANES or columns % GROUP:
        matrix_OI = F.pad(matrix_OI, (0, -columns % GROUP, 0, -rows % LANES))
    return matrix_OI.unflatten(0, (-1, LANES)).unflatten(-1, (-1, GROUP))


def _lanes(half_OG: Tensor) -> Tensor:
    return F.pad(half_OG, (0, 0, 0, -len(half_OG) % LANES)).unflatten(0, (-1, LANES))
