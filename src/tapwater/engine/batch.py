"""The tensors of one step."""

from dataclasses import dataclass

from torch import Tensor

from tapwater.engine.latent_cache import LatentCache, index_tensor
from tapwater.engine.request import Request
from tapwater.engine.scheduler import Chunk
from tapwater.model import CacheView


@dataclass(frozen=True)
class Batch:
    """Flat tokens of all chunks; `sampling` are the requests whose last known token is among them, at `rows`."""

    tokens_T: Tensor
    positions_T: Tensor
    view: CacheView
    sampling: list[Request]
    rows: list[int]


def build_batch(chunks: list[Chunk], cache: LatentCache) -> Batch:
    """Lay the chunks side by side: generated tokens, then prompts, each shortest first, so that decodes of one length
    can be attended together."""
    chunks = sorted(chunks, key=lambda chunk: (chunk.is_prompt, chunk.num_tokens))
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    sampling: list[Request] = []
    for chunk in chunks:
        start = chunk.request.num_computed_tokens
        stop = start + chunk.num_tokens
        tokens += chunk.request.tokens(start, stop)
        positions += range(start, stop)
        if stop == chunk.request.num_tokens:
            sampling.append(chunk.request)
            rows.append(len(tokens) - 1)
    view = cache.view(
        [chunk.request.pages for chunk in chunks],
        [chunk.num_tokens for chunk in chunks],
        [chunk.request.num_computed_tokens + chunk.num_tokens for chunk in chunks],
        sum(not chunk.is_prompt for chunk in chunks),
    )
    return Batch(index_tensor(tokens), index_tensor(positions), view, sampling, rows)
