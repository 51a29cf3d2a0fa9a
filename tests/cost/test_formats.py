"""Bytes of weights and caches against those that kernels and model really take."""

import pytest

from tapwater.config import preset
from tapwater.cost.formats import (
    CACHE_FORMATS,
    WEIGHT_BITS,
    Formats,
    cache_bytes_per_token,
    mean_weight_bits,
    weight_bytes,
)
from tapwater.errors import ConfigError
from tapwater.model.packed import entry_size
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.quant import BLOCK_BYTES, GROUP, LANES, Format

NAMES = ("deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "deepseek-67b", "deepseek-moe-16b", "smollm2-135m", "tiny")


@pytest.mark.parametrize("format", list(CacheFormat))
@pytest.mark.parametrize("name", NAMES)
def test_our_caches_take_what_the_kernels_write(name: str, format: CacheFormat) -> None:
    config = preset(name)
    assert cache_bytes_per_token(config, str(format)) == config.num_hidden_layers * entry_size(config, format)


@pytest.mark.parametrize("format", list(Format))
def test_our_weights_take_what_blocks_take(format: Format) -> None:
    assert weight_bytes(str(format), LANES * GROUP) == BLOCK_BYTES[format]


def test_published_layouts() -> None:
    v2 = preset("deepseek-v2")
    assert cache_bytes_per_token(v2, "6bit") == 25_920
    assert cache_bytes_per_token(v2, "fp8") == 34_560
    assert cache_bytes_per_token(v2, "fp8_line") == 60 * 656
    with pytest.raises(ConfigError, match="only MLA has them"):
        cache_bytes_per_token(preset("deepseek-67b"), "fp8_line")


def test_four_bits_keep_the_head_and_the_latent_s_matrices_finer() -> None:
    lite = preset("deepseek-v2-lite")
    formats = Formats("q4_min", "bfloat16")
    assert [formats.of(part) for part in ("routed", "latent", "head")] == ["q4_min", "q8", "q8"]
    assert 5 < mean_weight_bits(lite, formats) < 5.2
    assert mean_weight_bits(lite, Formats("bf16", "bfloat16")) == 16
    assert Formats("q4", "q8", head="q4").of("head") == "q4"
    small, large = (mean_weight_bits(preset(name), formats) for name in ("smollm2-135m", "deepseek-67b"))
    assert small > large  # a small model is to a fifth vocabulary


def test_unknown_formats_are_named() -> None:
    for weights, cache, said in (("q4min", "q8", "weight format 'q4min'"), ("q4", "bfloat", "cache format 'bfloat'")):
        with pytest.raises(ConfigError, match=f"no {said}; did you mean"):
            Formats(weights, cache)
    with pytest.raises(ConfigError, match="no weight format 'int3'"):
        Formats("q4", "q8", head="int3")
    assert set(WEIGHT_BITS) >= {str(format) for format in Format}
    assert set(CACHE_FORMATS) >= {str(format) for format in CacheFormat}
