"""How the paged cache stores one token of one layer: the bytes native kernels read and write, defined in torch.

An entry is a row of segments, each a run of numbers that belong together: the keys of each head, then the values of
each head for grouped attention; the latent, then the rope key for MLA. Within a segment of `width` numbers:

    float32   as they are
    bfloat16  the nearest
    q8        `width` int8, then a float16 scale for each 32 of them: x = scale * q, q = -127..127. 8.5 bits a number
    q6        24 bytes for each 32 numbers, then a float16 scale for each 64: x = scale * (u - 32), u = 1..63.
              6.25 bits a number, close to the 6 of DeepSeek-V2 (report section 3.2.3), which states no layout.
              Of 32 numbers, byte k < 16 holds the low four bits of number k and, above them, of number k + 16; byte
              16 + k (k < 8) holds the high two bits of numbers k, k + 8, k + 16 and k + 24, lowest first. What a last
              group lacks is zero.

The scale is the group's largest magnitude over 127 or 31, rounded to float16. Magnitudes below 2^-25 of that many steps
(4e-6 for q8, 1e-6 for q6) become zero. A group with a NaN, or too large for a float16 scale (8.3e6 for q8, 2e6 for q6),
comes back as NaN and infinities: it is never quietly cut.
"""

import enum
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own customary name
from torch import Tensor

GROUP_Q8, GROUP_Q6, HALF_GROUP_Q6 = 32, 64, 32
HALF_GROUP_BYTES_Q6 = 24


class CacheFormat(enum.StrEnum):
    """How numbers are cached; the order of members is the number kernels know them by."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    Q8 = "q8"
    Q6 = "q6"

    @property
    def number(self) -> int:
        return list(CacheFormat).index(self)


def for_keys(format: CacheFormat) -> CacheFormat:
    """How a cache in `format` keeps what is attended to as it is: keys of grouped attention, and MLA's rope key.

    Of a q6 cache they are q8: in six bits they cost SmolLM2 2% of perplexity, values 0.3%.
    """
    return CacheFormat.Q8 if format is CacheFormat.Q6 else format


def segment_bytes(format: CacheFormat, width: int) -> int:
    """Bytes of a segment of `width` numbers."""
    if width < 1:
        raise ValueError(f"a segment holds at least one number, not {width}")
    match format:
        case CacheFormat.FLOAT32:
            return 4 * width
        case CacheFormat.BFLOAT16:
            return 2 * width
        case CacheFormat.Q8:
            return width + 2 * -(-width // GROUP_Q8)
        case CacheFormat.Q6:
            return HALF_GROUP_BYTES_Q6 * -(-width // HALF_GROUP_Q6) + 2 * -(-width // GROUP_Q6)


def entry_bytes(format: CacheFormat, widths: Sequence[int]) -> int:
    """Bytes of an entry of segments of these widths."""
    return sum(segment_bytes(format, width) for width in widths)


def encode(format: CacheFormat, x: Tensor, widths: Sequence[int]) -> Tensor:
    """Entries, uint8 [..., entry_bytes], of numbers [..., sum of widths]."""
    if x.shape[-1] != sum(widths):
        raise ValueError(f"segments of {list(widths)} make up {sum(widths)} numbers, not {x.shape[-1]}")
    segments = x.float().split(list(widths), dim=-1)
    return torch.cat([_encode_segment(format, segment.contiguous()) for segment in segments], dim=-1)


def decode(format: CacheFormat, entries: Tensor, widths: Sequence[int]) -> Tensor:
    """The float32 numbers [..., sum of widths] of entries [..., entry_bytes], exactly as kernels compute with them."""
    sizes = [segment_bytes(format, width) for width in widths]
    if entries.dtype != torch.uint8 or entries.shape[-1] != sum(sizes):
        raise ValueError(f"entries of {sum(sizes)} bytes are expected, got {entries.dtype} {list(entries.shape)}")
    segments = zip(entries.split(sizes, dim=-1), widths, strict=True)
    return torch.cat([_decode_segment(format, data.contiguous(), width) for data, width in segments], dim=-1)


def _encode_segment(format: CacheFormat, x: Tensor) -> Tensor:
    match format:
        case CacheFormat.FLOAT32:
            return x.view(torch.uint8)
        case CacheFormat.BFLOAT16:
            return x.to(torch.bfloat16).view(torch.uint8)
        case CacheFormat.Q8:
            steps, scales = _quantise(x, GROUP_Q8, 127)
            return torch.cat((steps[..., : x.shape[-1]].to(torch.int8).view(torch.uint8), scales), dim=-1)
        case CacheFormat.Q6:
            steps, scales = _quantise(x, GROUP_Q6, 31)
            halves = -(-x.shape[-1] // HALF_GROUP_Q6)
            u = steps[..., : halves * HALF_GROUP_Q6].to(torch.uint8) + 32
            u[..., x.shape[-1] :] = 0
            first, second = u.unflatten(-1, (halves, 2, 16)).unbind(-2)
            low = (first & 15) | (second & 15) << 4
            quarters = u.unflatten(-1, (halves, 4, 8)) >> 4
            high = quarters[..., 0, :] | quarters[..., 1, :] << 2 | quarters[..., 2, :] << 4 | quarters[..., 3, :] << 6
            return torch.cat((torch.cat((low, high), dim=-1).flatten(-2), scales), dim=-1)


def _decode_segment(format: CacheFormat, data: Tensor, width: int) -> Tensor:
    match format:
        case CacheFormat.FLOAT32:
            return data.view(torch.float32)
        case CacheFormat.BFLOAT16:
            return data.view(torch.bfloat16).float()
        case CacheFormat.Q8:
            return data[..., :width].view(torch.int8).float() * _scales(data[..., width:], GROUP_Q8, width)
        case CacheFormat.Q6:
            halves = -(-width // HALF_GROUP_Q6)
            size = halves * HALF_GROUP_BYTES_Q6
            low, high = data[..., :size].unflatten(-1, (halves, HALF_GROUP_BYTES_Q6)).split((16, 8), dim=-1)
            low = torch.cat((low & 15, low >> 4), dim=-1)
            high = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
            steps = (low | high << 4).flatten(-2)[..., :width].float() - 32
            return steps * _scales(data[..., size:], GROUP_Q6, width)


def _quantise(x: Tensor, group: int, most: int) -> tuple[Tensor, Tensor]:
    """Whole groups of integers -most..most, and the bytes of their scales."""
    groups = F.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
    scale = (groups.abs().amax(-1, keepdim=True) / torch.tensor(float(most))).to(torch.float16)
    # a true division, as the kernels do: torch makes `1 / tensor` a product with the reciprocal
    inverse = torch.where(scale == 0, 0.0, torch.tensor(1.0) / scale.float())
    steps = (groups * inverse).nan_to_num(nan=-most).round().clamp(-most, most)
    return steps.flatten(-2), scale[..., 0].contiguous().view(torch.uint8)


def _scales(data: Tensor, group: int, width: int) -> Tensor:
    return data.contiguous().view(torch.float16).float().repeat_interleave(group, dim=-1)[..., :width]
