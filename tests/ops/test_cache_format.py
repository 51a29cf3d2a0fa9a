"""The bytes of a cache entry: sizes, what is lost, and that native kernels write and read the same ones."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from ops.instruction_sets import forced
from tapwater.ops import native, native_attention
from tapwater.ops.cache_format import CacheFormat, decode, encode, entry_bytes

WIDTHS = [(64, 64), (512, 64), (33, 40, 80), (1, 2, 31, 32), (65, 129), (7,)]


@pytest.fixture(scope="module", params=native.INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[native.Kernels]:
    yield from forced(request.param, threads=2)


def entries(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Numbers of many magnitudes: rows from 1e-3 to 1e3, with a few zeros and outliers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator) * 10 ** torch.linspace(-3, 3, tokens)[:, None]
    x[torch.rand(tokens, width, generator=generator) < 0.05] = 0
    return x * torch.where(torch.rand(tokens, width, generator=generator) < 0.02, 30.0, 1.0)


@pytest.mark.parametrize(
    ("format", "widths", "size"),
    [
        (CacheFormat.FLOAT32, (512, 64), 2304),
        (CacheFormat.BFLOAT16, (512, 64), 1152),
        (CacheFormat.Q8, (512, 64), 612),
        (CacheFormat.Q6, (512, 64), 450),  # 6.25 bits a number; the report says 6 on average
        (CacheFormat.Q8, (64, 64, 33), 68 + 68 + 37),
        (CacheFormat.Q6, (33, 32, 1), 50 + 26 + 26),
    ],
)
def test_sizes(format: CacheFormat, widths: tuple[int, ...], size: int) -> None:
    assert entry_bytes(format, widths) == size
    assert encode(format, torch.zeros(3, 5, sum(widths)), widths).shape == (3, 5, size)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(
    ("format", "group", "steps"), [(CacheFormat.Q8, 32, 127), (CacheFormat.Q6, 64, 31)], ids=["q8", "q6"]
)
def test_quantised_numbers_are_half_a_step_away_at_most(
    format: CacheFormat, group: int, steps: int, widths: tuple[int, ...]
) -> None:
    x = entries(50, sum(widths))
    back = decode(format, encode(format, x, widths), widths)
    for segment, again in zip(x.split(widths, -1), back.split(widths, -1), strict=True):
        for part, other in zip(segment.split(group, -1), again.split(group, -1), strict=True):
            largest = part.abs().amax(-1, keepdim=True)
            bound = (
                largest / steps * (0.5 + steps * 2**-11) + 2**-25 * steps
            )  # rounding; the scale's; the smallest scale
            assert ((part - other).abs() <= bound).all()


def test_exact_formats() -> None:
    x = entries(20, 50)
    assert torch.equal(decode(CacheFormat.FLOAT32, encode(CacheFormat.FLOAT32, x, (20, 30)), (20, 30)), x)
    assert torch.equal(
        decode(CacheFormat.BFLOAT16, encode(CacheFormat.BFLOAT16, x, (50,)), (50,)), x.bfloat16().float()
    )


def test_q8_agrees_with_ggufs_q8_0() -> None:
    x = entries(40, 128, seed=3)
    theirs = quants.dequantize(quants.quantize(x.numpy(), GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
    ours = decode(CacheFormat.Q8, encode(CacheFormat.Q8, x, (128,)), (128,)).numpy()
    step = np.abs(x.numpy()).reshape(40, 4, 32).max(-1).repeat(32, -1) / 127
    assert (np.abs(theirs - ours) <= step * 1.01).all()  # they divide by the scale before it is rounded to float16
    assert (np.abs(theirs - ours) < step * 0.2).mean() > 0.99


@pytest.mark.parametrize("format", CacheFormat)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf, 1e38])
def test_what_cannot_be_cached_is_not_hidden(format: CacheFormat, bad: float) -> None:
    x = torch.ones(2, 128)
    x[1, 70] = bad
    back = decode(format, encode(format, x, (128,)), (128,))
    assert torch.allclose(back[0], x[0], rtol=1e-3)
    kept = bad == 1e38 and format in (CacheFormat.FLOAT32, CacheFormat.BFLOAT16)
    assert bool(back[1, 70].isfinite()) == kept
    assert torch.allclose(back[1, :64], x[1, :64], rtol=1e-3)  # other groups are as they were


@pytest.mark.parametrize("format", CacheFormat)
def test_wrong_sizes_are_refused(format: CacheFormat) -> None:
    with pytest.raises(ValueError, match="make up 7 numbers, not 8"):
        encode(format, torch.zeros(2, 8), (3, 4))
    with pytest.raises(ValueError, match="bytes are expected"):
        decode(format, torch.zeros(2, 3, dtype=torch.uint8), (3, 4))
    with pytest.raises(ValueError, match="at least one"):
        entry_bytes(format, (3, 0))


@pytest.mark.parametrize("format", CacheFormat)
@pytest.mark.parametrize("widths", WIDTHS)
def test_kernels_write_the_same_bytes(kernels: native.Kernels, format: CacheFormat, widths: tuple[int, ...]) -> None:
    x = entries(30, sum(widths), seed=1)
    x[3] = 0
    x[4] *= 1e-6  # scales below the smallest normal half
    x[5, 0], x[6, 0] = math.inf, 3e38
    if format is not CacheFormat.BFLOAT16:  # there are many NaNs, and torch's choice varies
        x[7, 0] = math.nan
    # halfway between two steps, where the rule for ties shows
    x[8] = torch.arange(sum(widths)) % 20 - 9.5
    pages = torch.full((7, 5, entry_bytes(format, widths)), 0xA5, dtype=torch.uint8)
    slots = torch.randperm(35, generator=torch.Generator().manual_seed(2))[:30]
    expected = pages.flatten(0, 1).index_copy(0, slots, encode(format, x, widths))
    native_attention.store(kernels, format, pages, slots, x, widths)
    assert torch.equal(pages.flatten(0, 1), expected)


@pytest.mark.parametrize("format", CacheFormat)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, 40, 64, 80, 129, 512])
def test_kernels_read_the_same_numbers(kernels: native.Kernels, format: CacheFormat, width: int) -> None:
    """Attention to a single token is its value, to the last bit."""
    pages = encode(format, entries(12, 2 * width, seed=2), (width, width))[:, None].contiguous()
    q = torch.zeros(12, 1, width)
    table = torch.arange(12)[:, None]
    out = native_attention.paged_attention(kernels, format, q, pages, table, (1,) * 12, (1,) * 12, 1, 1.0)
    assert torch.equal(out[:, 0], decode(format, pages[:, 0], (width, width))[:, width:])
