"""The cache's memory: pages of keys and values, or of latents and rope keys, for all layers."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tapwater.errors import ConfigError
from tapwater.model import CacheView


class Pages(Protocol):
    """A model, as far as its cache goes."""

    def new_pages(self, num_pages: int, page_size: int) -> Tensor: ...


class LatentCache:
    """`pages_LPSX`: L layers, P pages, S slots per page, one entry per slot: X numbers, or bytes of a packed format.

    An entry is the latent, then the rope key for MLA; keys of all heads, then values for grouped attention. One page
    number means the same tokens in every layer.
    """

    def __init__(self, model: Pages, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        try:
            self.pages_LPSX = model.new_pages(num_pages, page_size)
        except RuntimeError as error:
            raise ConfigError(
                f"engine.cache_tokens: the memory for {num_pages * page_size} tokens cannot be had; lower it ({error})"
            ) from None

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def view(
        self,
        pages: Sequence[Sequence[int]],
        query_lengths: Sequence[int],
        context_lengths: Sequence[int],
        num_generating: int,
    ) -> CacheView:
        """The step in which request b, holding `pages[b]`, computes its last `query_lengths[b]` of
        `context_lengths[b]` tokens; the first `num_generating` requests are past their prompts."""
        widest = max(self.pages_for(context) for context in context_lengths)
        table = array("q")
        for held in pages:
            table.extend(held[:widest])
            table.extend([0] * (widest - len(held)))
        slots = (
            held[position // self.page_size] * self.page_size + position % self.page_size
            for held, query, context in zip(pages, query_lengths, context_lengths, strict=True)
            for position in range(context - query, context)
        )
        return CacheView(
            self.pages_LPSX,
            index_tensor(table).view(len(pages), widest),
            index_tensor(slots),
            tuple(query_lengths),
            tuple(context_lengths),
            num_generating,
        )


def index_tensor(indices: Iterable[int]) -> Tensor:
    """At least one index as int64; several times faster than torch.tensor, which looks at each for its type."""
    return torch.frombuffer(array("q", indices), dtype=torch.int64)
