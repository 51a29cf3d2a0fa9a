"""GGUF's blocks as integers: those of its types that our formats hold without going through floats.

Q4_0 -> q4, Q4_1 -> q4_min, Q5_0 and Q8_0 -> q8    the same numbers
Q4_K -> q4_min                                     but for scales and minima, products rounded to float16
"""

from typing import NamedTuple

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from tapwater.ops.quant import Format

STEPPED = frozenset(GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K"))


class Steps(NamedTuple):
    """A matrix in integers, as `ops.quant.pack` takes it: int8 q, float16 scale (and minimum) by group of 32."""

    format: Format
    q_OI: Tensor
    scale_OG: Tensor
    minimum_OG: Tensor | None


def read_steps(kind: GGMLQuantizationType, raw_OB: Tensor) -> Steps | None:
    """The integers in rows of bytes of a `STEPPED` type; scales are as they are stored, finite or not.

    None for a Q8_0 with a -128, which llama.cpp never writes and q8 does not hold.
    """
    blocks = raw_OB.unflatten(-1, (-1, GGML_QUANT_SIZES[kind][1]))
    if kind is GGMLQuantizationType.Q4_K:
        return _q4_k(blocks)
    scale = _halves(blocks, 0)
    if kind is GGMLQuantizationType.Q4_0:
        return Steps(Format.Q4, (_nibbles(blocks[..., 2:]) - 8).flatten(1), scale, None)
    if kind is GGMLQuantizationType.Q4_1:
        return Steps(Format.Q4_MIN, _nibbles(blocks[..., 4:]).flatten(1), scale, _halves(blocks, 2))
    if kind is GGMLQuantizationType.Q5_0:
        fifth = blocks[..., 2:6, None] >> torch.arange(8, dtype=torch.uint8) & 1
        q = _nibbles(blocks[..., 6:]) + (fifth.flatten(-2).to(torch.int8) << 4) - 16
        return Steps(Format.Q8, q.flatten(1), scale, None)
    q = blocks[..., 2:].contiguous().view(torch.int8)
    return None if int(q.min()) == -128 else Steps(Format.Q8, q.flatten(1), scale, None)


def widened(steps: Steps, format: Format) -> Steps | None:
    """The same numbers in another format, or None if it has no place for them."""
    if steps.format is format:
        return steps
    if steps.format is Format.Q4 and format is Format.Q8:
        return Steps(format, steps.q_OI, steps.scale_OG, None)
    if steps.format is Format.Q4 and format is Format.Q4_MIN:
        minimum_OG = steps.scale_OG * -8
        return Steps(format, steps.q_OI + 8, steps.scale_OG, minimum_OG) if minimum_OG.isfinite().all() else None
    return None


def _q4_k(blocks: Tensor) -> Steps:
    """256 values: scale and minimum of the eight groups' scales and minima, six bits each of these in twelve bytes."""
    packed = blocks[..., 4:16].unflatten(-1, (3, 4))
    first, second, tops = packed[..., 0, :], packed[..., 1, :], packed[..., 2, :]
    factors = torch.cat((first & 63, tops & 15 | first >> 6 << 4), -1)
    offsets = torch.cat((second & 63, tops >> 4 | second >> 6 << 4), -1)
    scale = (_halves(blocks, 0)[..., None].float() * factors).half()
    minimum = (_halves(blocks, 2)[..., None].float() * -offsets.float()).half()
    q = _nibbles(blocks[..., 16:].unflatten(-1, (4, 32)))
    return Steps(Format.Q4_MIN, q.flatten(1), scale.flatten(1), minimum.flatten(1))


def _halves(blocks: Tensor, at: int) -> Tensor:
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _nibbles(data: Tensor) -> Tensor:
    """Int8: the lower halves of all bytes, then the upper ones."""
    return torch.cat((data & 15, data >> 4), -1).to(torch.int8)
