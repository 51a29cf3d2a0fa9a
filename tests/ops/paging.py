"""Ragged requests in shuffled pages, with NaN wherever no token lies."""

import math

import torch
from torch import Tensor

from tapwater import ops

PAGE = 4
RAGGED = [
    ((1,), (1,)),
    ((5,), (5,)),
    ((1, 1, 1), (1, 9, 4)),
    ((3, 3, 1, 8), (3, 7, 12, 8)),
    ((1, 16, 1, 1), (33, 16, 2, 17)),
]


def poisoned_pages(context_lengths: tuple[int, ...], width: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Pages in shuffled order with NaN wherever no token lies, the page table, and each request's entries."""
    generator = torch.Generator().manual_seed(0)
    counts = [-(-length // PAGE) for length in context_lengths]
    order = torch.randperm(sum(counts) + 3, generator=generator).tolist()
    pages = torch.full((len(order), PAGE, width), math.nan)
    table = torch.zeros(len(counts), max(counts), dtype=torch.long)
    entries = []
    for request, (length, count) in enumerate(zip(context_lengths, counts, strict=True)):
        held = [order.pop() for _ in range(count)]
        table[request, :count] = torch.tensor(held)
        entry = torch.randn(length, width, generator=generator)
        slots = torch.tensor([held[i // PAGE] * PAGE + i % PAGE for i in range(length)])
        ops.store(pages, slots, entry)
        entries.append(entry)
    return pages, table, entries
