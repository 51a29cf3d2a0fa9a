"""What is measured before the first step: which precision is faster here, and the peak MFU is a share of."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from tapwater.config import ModelConfig
from tapwater.ops.peak import Product, products_per_s

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
SQUARES = (1024, 2048)  # beyond caches, and still quick
ROUNDS = 3


@dataclass(frozen=True)
class Trial:
    """The faster precision, and the least seconds of a step in each."""

    fastest: Precision
    seconds: Mapping[Precision, float]


def fastest_precision(run_step: Callable[[Precision], None], rounds: int = ROUNDS) -> Trial:
    """Time whole steps, forward and backward, in each precision; the lower least time wins, float32 if they are equal.

    `run_step` runs one on real shapes and must leave weights and optimizer as they were; its first call of each
    precision warms up. Precisions take turns, so that a machine that slows down slows both.
    """
    times: dict[Precision, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(rounds + 1):
        for precision in PRECISIONS:
            start = time.perf_counter()
            run_step(precision)
            times[precision].append(time.perf_counter() - start)
    least = {precision: min(each[1:]) for precision, each in times.items()}
    return Trial(min(PRECISIONS, key=least.__getitem__), least)


def matmul_peak(dtype: torch.dtype, config: ModelConfig, tokens: int, device: torch.device) -> float:
    """FLOP/s of the fastest matrix product found on `device`, with torch's threads as they are; takes a second or two.

    Tried are large squares and the products that `tokens` tokens of a micro-batch make with this model, so that no
    step can reach more by having better shapes. MFU against it is a share of what this machine's software does, not of
    a data sheet.
    """
    return products_per_s(dtype, _products(config, tokens), ROUNDS, device)


def _products(config: ModelConfig, tokens: int) -> list[Product]:
    hidden = config.hidden_size
    widths = {hidden, config.intermediate_size, config.vocab_size}
    if config.is_moe:
        widths.add(config.moe.moe_intermediate_size)
    return [(size, size, size) for size in SQUARES] + [(tokens, hidden, width) for width in sorted(widths)]
