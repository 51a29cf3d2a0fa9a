"""The cache's memory: pages of keys and values, or of latents and rope keys, for all layers."""

from collections.abc import Sequence

import torch

from tapwater.config import ModelConfig
from tapwater.errors import ConfigError
from tapwater.model import CacheView


class LatentCache:
    """`pages_LPSX`: L layers, P pages, S slots per page, X numbers per token and layer.

    X is kv_lora_rank + qk_rope_head_dim for MLA (latent, then rope key) and 2 * G * d for grouped attention (keys of
    all heads, then values). One page number means the same tokens in every layer.
    """

    def __init__(self, config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype) -> None:
        self.page_size = page_size
        shape = (config.num_hidden_layers, num_pages, page_size, config.kv_elements_per_token_per_layer)
        try:
            self.pages_LPSX = torch.zeros(shape, dtype=dtype)
        except RuntimeError as error:
            size = num_pages * page_size * config.kv_elements_per_token * dtype.itemsize
            raise ConfigError(
                f"engine.cache_tokens: {num_pages * page_size} tokens take {size / 1e9:.1f} GB of memory, which cannot "
                f"be had; lower it ({error})"
            ) from None

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def view(
        self, pages: Sequence[Sequence[int]], query_lengths: Sequence[int], context_lengths: Sequence[int]
    ) -> CacheView:
        """The step in which request b, holding `pages[b]`, computes its last `query_lengths[b]` of
        `context_lengths[b]` tokens."""
        widest = max(self.pages_for(context) for context in context_lengths)
        table_BP = torch.tensor([[*held[:widest], *[0] * (widest - len(held))] for held in pages], dtype=torch.long)
        slots = [
            held[position // self.page_size] * self.page_size + position % self.page_size
            for held, query, context in zip(pages, query_lengths, context_lengths, strict=True)
            for position in range(context - query, context)
        ]
        return CacheView(self.pages_LPSX, table_BP, torch.tensor(slots), tuple(query_lengths), tuple(context_lengths))
