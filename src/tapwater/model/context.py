"""What attention is told about the tokens of one call: whole sequences without a cache, or new tokens with one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Consecutive whole sequences of `lengths` tokens; none attends to another (training, scoring)."""

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.lengths or any(type(length) is not int or length < 1 for length in self.lengths):
            raise ValueError(f"Sequences: lengths must be positive integers, got {self.lengths}")

    @property
    def query_lengths(self) -> tuple[int, ...]:
        """New tokens of each sequence: all of them."""
        return self.lengths

    def positions(self) -> Tensor:
        """Positions 0.. of each sequence, flat [T]."""
        return torch.cat([torch.arange(length) for length in self.lengths])


@dataclass(frozen=True)
class CacheView:
    """The engine's paged cache as one step sees it.

    Request b brings `query_lengths[b]` new tokens, consecutive in the flat token order; after the step it has
    `context_lengths[b]` tokens cached. Token t's entry goes to `slots_T[t]` = page * S + offset. A page holds, per
    slot, keys and values of all heads (grouped attention) or the latent and the rope key (MLA).

    The first `num_generating` requests compute tokens they generated, the others tokens of their prompts. Native MLA
    takes the absorbed form for the former and the expanded for the latter: a property of the token, not of its chunk,
    so that chunking cannot change a result.
    """

    pages_LPSX: Tensor
    page_table_BP: Tensor
    slots_T: Tensor
    query_lengths: tuple[int, ...]
    context_lengths: tuple[int, ...]
    num_generating: int = 0

    def select(self, wanted: Callable[[int, int], bool]) -> "CachePart | None":
        """The requests for which `wanted(query_length, context_length)` holds, or None if there is none."""
        chosen = [
            index
            for index, (query, context) in enumerate(zip(self.query_lengths, self.context_lengths, strict=True))
            if wanted(query, context)
        ]
        if not chosen:
            return None
        starts = torch.tensor((0, *self.query_lengths)).cumsum(0).tolist()
        rows = [torch.arange(starts[index], starts[index + 1]) for index in chosen]
        return CachePart(
            torch.cat(rows).to(self.slots_T.device),
            self.page_table_BP[chosen],
            tuple(self.query_lengths[index] for index in chosen),
            tuple(self.context_lengths[index] for index in chosen),
        )


@dataclass(frozen=True)
class CachePart:
    """Some requests of a CacheView; `tokens_t` are their rows in the flat token order."""

    tokens_t: Tensor
    page_table_BP: Tensor
    query_lengths: tuple[int, ...]
    context_lengths: tuple[int, ...]


AttentionContext = Sequences | CacheView
