"""Random models of any shape, to time steps on: speed does not depend on what the weights say."""

import random
import time
from statistics import median

import torch

from tapwater.checkpoint.packed_layout import packed_arrays
from tapwater.config import ModelConfig
from tapwater.engine.latent_cache import LatentCache
from tapwater.model import PackedTransformer, PackedWeights
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.quant import DATA_BYTES, LANES, Format, PackedWeight, blocks_shape

PAGE = 16
DEVIATION = 0.02  # of the weights: states stay finite through any number of layers
STEPS = {Format.Q4: 4.6, Format.Q4_MIN: 4.6, Format.Q8: 74.0}  # root mean square of the integers in a block
FIRST_TOKEN = 2


def random_weights(config: ModelConfig, format: Format) -> PackedWeights:
    """Weights of every matrix and norm of `config`, blocks drawn at random; tokens choose different experts."""
    matrices: dict[str, PackedWeight] = {}
    tensors: dict[str, torch.Tensor] = {}
    for array in packed_arrays(config):
        if array.is_matrix:
            kept = Format.Q8 if array.cut and format is not Format.BF16 else format  # as packing does
            matrices[array.name] = random_matrix(kept, *array.shape)
        elif array.name.endswith("gate.weight"):
            tensors[array.name] = torch.randn(array.shape) * 0.02
        else:
            tensors[array.name] = torch.ones(array.shape)
    return PackedWeights(matrices, tensors)


def random_matrix(format: Format, count: int, rows: int, columns: int) -> PackedWeight:
    """A stack of `count` packed matrices [rows, columns] of random weights."""
    shape = blocks_shape(format, rows, columns, count)
    if format is Format.BF16:
        numbers = torch.empty(*shape[:-1], shape[-1] // 2).normal_(std=0.02)
        return PackedWeight(format, rows, columns, numbers.to(torch.bfloat16).view(torch.uint8), count)
    blocks = torch.randint(0, 2**63 - 1, (*shape[:-1], shape[-1] // 8)).view(torch.uint8)
    # Scales of either sign, and minima that centre them: weights whose mean is not zero make all states alike, and
    # then all tokens choose the same experts.
    scales = torch.full((*shape[:-1], LANES), DEVIATION / STEPS[format])
    scales[torch.rand(scales.shape) < 0.5] *= -1
    halves = torch.cat((scales, -7.5 * scales), dim=-1) if format is Format.Q4_MIN else scales
    blocks[..., DATA_BYTES[format] :] = halves.to(torch.float16).view(torch.uint8)
    return PackedWeight(format, rows, columns, blocks, count)


class Probe:
    """A random model and room for its cache; `seconds` of a step are told without the engine's."""

    def __init__(self, config: ModelConfig, format: Format, threads: int, cache: CacheFormat) -> None:
        self.config = config
        self.model = PackedTransformer(config, random_weights(config, format), threads, cache)
        self._chance = random.Random(0)

    def close(self) -> None:
        self.model.close()

    def decode(self, batch: int, context: int, repeats: int) -> float:
        """Median seconds of a step of `batch` requests, each generating its `context`-th token."""
        return self._seconds([1] * batch, [context] * batch, batch, repeats)

    def prefill(self, tokens: int, cached: int, repeats: int) -> float:
        """Median seconds of a chunk of `tokens` prompt tokens after `cached` ones."""
        return self._seconds([tokens], [cached + tokens], 0, repeats)

    def _seconds(self, queries: list[int], contexts: list[int], generating: int, repeats: int) -> float:
        each = -(-max(contexts) // PAGE)
        cache = LatentCache(self.model, each * len(queries), PAGE)
        pages = [range(index * each, (index + 1) * each) for index in range(len(queries))]
        view = cache.view(pages, queries, contexts, generating)
        pairs = list(zip(queries, contexts, strict=True))
        positions = torch.cat([torch.arange(context - query, context) for query, context in pairs])
        last = torch.tensor(queries).cumsum(0) - 1
        times = []
        for _ in range(repeats + 1):  # the first warms up
            tokens = torch.tensor([self._token() for _ in range(sum(queries))])
            start = time.perf_counter()
            self.model.predict(self.model(tokens, positions, view).hidden_TD[last])
            times.append(time.perf_counter() - start)
        return median(times[1:])

    def _token(self) -> int:
        return self._chance.randrange(FIRST_TOKEN, self.config.vocab_size)
