"""How fast matrix products can be here: the peak that a share of it (MFU) is measured against."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Product = tuple[int, int, int]  # [rows, inner] @ [inner, columns]


def products_per_s(
    dtype: torch.dtype, products: Sequence[Product], repeats: int, device: torch.device | None = None
) -> float:
    """FLOP/s of the fastest of `products` on `device`, each the best of `repeats` after one; on a CPU with torch's
    threads as they are."""
    best = 0.0
    for rows, inner, columns in products:
        x, y = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)

        def multiply(x: Tensor = x, y: Tensor = y) -> None:
            product = x @ y
            if product.is_cuda:  # whose work has only been asked for by now
                torch.cuda.synchronize(product.device)

        best = max(best, 2 * rows * inner * columns / least_seconds(multiply, repeats))
    return best


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least time of `repeats` calls, after one that warms up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
