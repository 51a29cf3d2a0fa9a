"""What quantising does to the perplexity of a text: the original in float32, the packed model as it is served."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tapwater.checkpoint import PackedDirectory, Progress
from tapwater.checkpoint.scoring import perplexity, total_loss
from tapwater.checkpoint.unpacked import UnpackedSource
from tapwater.engine.latent_cache import LatentCache
from tapwater.errors import ConfigError
from tapwater.llm import available_cores
from tapwater.model import PackedTransformer
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.native import is_built
from tapwater.text import Tokenizer

WINDOW = 512  # tokens that see each other
PAGE_SIZE = 16


def windows(tokenizer: Tokenizer, text: Path, num_tokens: int, max_context: int) -> list[Tensor]:
    """The first `num_tokens` tokens of a file, cut into windows; ConfigError if it cannot be read or is empty."""
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{text}: cannot be read as UTF-8 text: {error}") from None
    ids = torch.tensor(tokenizer.encode(content)[:num_tokens], dtype=torch.long)
    found = [window for window in ids.split(min(WINDOW, max_context)) if len(window) > 1]
    if not found:
        raise ConfigError(f"{text}: is too short to measure anything: it takes two tokens or more")
    return found


def packed_perplexity(packed: PackedDirectory, windows: Sequence[Tensor], progress: Progress) -> float:
    """Through the native kernels, with 8-bit activations and the cache they have by default; where they are not built,
    of the same weights in float32."""
    weights = packed.weights()
    if not is_built():
        source = UnpackedSource(packed.config, weights, str(packed.path))
        return perplexity(source.config, source, windows, progress)
    model = PackedTransformer(packed.config, weights, available_cores(), CacheFormat.BFLOAT16)
    try:
        num_pages = -(-max(len(window) for window in windows) // PAGE_SIZE)
        cache = LatentCache(model, num_pages, PAGE_SIZE)
        loss = 0.0
        for done, window in enumerate(windows, start=1):
            view = cache.view([range(num_pages)], [len(window)], [len(window)], 0)
            hidden_TD = model.forward(window, torch.arange(len(window)), view).hidden_TD
            loss += total_loss(hidden_TD, window, model.logits)
            progress(done, len(windows))
    finally:
        model.close()
    return math.exp(loss / sum(len(window) - 1 for window in windows))
