"""How fast matrix products can be here: the peak that a share of it (MFU) is measured against."""

import time
from collections.abc import Callable, Sequence

import torch

Product = tuple[int, int, int]  # [rows, inner] @ [inner, columns]


def products_per_s(dtype: torch.dtype, products: Sequence[Product], repeats: int) -> float:
    """FLOP/s of the fastest of `products` with torch's threads as they are, each the best of `repeats` after one."""
    best = 0.0
    for rows, inner, columns in products:
        x, y = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        best = max(best, 2 * rows * inner * columns / least_seconds(lambda x=x, y=y: x @ y, repeats))
    return best


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least time of `repeats` calls, after one that warms up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
