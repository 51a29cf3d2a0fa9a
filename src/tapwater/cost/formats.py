"""Bytes of weights and of cache entries in every format, packed by our kernels or published, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tapwater.config import ModelConfig
from tapwater.config.parse import nearest
from tapwater.cost.counts import parameters
from tapwater.errors import ConfigError

T = TypeVar("T")

# Bits of a weight, its share of scales included; the last four are ops/quant.py's formats.
WEIGHT_BITS: Mapping[str, float] = {"float32": 32, "fp8": 8, "bf16": 16, "q8": 8.5, "q4_min": 5, "q4": 4.5}

# Which precision a product with such weights is computed in: the name of a machine's peak rate.
WEIGHT_PRECISION: Mapping[str, str] = {
    **{"float32": "fp32", "fp8": "fp8", "bf16": "bf16"},
    **dict.fromkeys(("q8", "q4_min", "q4"), "int8"),
}

CACHE_FORMATS: Mapping[str, str] = {
    "float32": "as computed",
    "bfloat16": "two bytes a number",
    "q8": "8.5 bits a number: int8 and a scale for each 32 (ours)",
    "q6": "6.25 bits a number, keys and rope keys in q8 (ours)",
    "fp8": "one byte a number, scales not counted",
    "fp8_line": "FlashMLA's 656 bytes: 512 numbers in fp8, four float32 scales, 64 in bfloat16; MLA only",
    "6bit": "6 bits a number on average, as the DeepSeek-V2 report states without a layout (section 3.2.3)",
}


@dataclass(frozen=True)
class Formats:
    """How a served model keeps its weights and its cache. `head`: embedding and head, where they differ from the rest.

    None is what `tapwater quantize` does: with weights of four bits, head and MLA's kv_b_proj have eight.
    """

    weights: str
    cache: str
    head: str | None = None

    def __post_init__(self) -> None:
        for format in (self.weights, self.head or self.weights):
            known(format, WEIGHT_BITS, "weight format")
        known(self.cache, CACHE_FORMATS, "cache format")

    def of(self, part: str) -> str:
        """The format of a part's weights (parts are those of `work.Product`)."""
        in_four_bits = self.weights in ("q4", "q4_min")
        if part == "head":
            return self.head or ("q8" if in_four_bits else self.weights)
        return "q8" if part == "latent" and in_four_bits else self.weights


def mean_weight_bits(config: ModelConfig, formats: Formats) -> float:
    """Bits of an average weight of the whole model: its parts may differ."""
    count = parameters(config)
    head = count.by_part["input embedding"] + count.by_part["output head"]
    latent = 0
    if config.is_mla:
        mla = config.mla
        latent = config.num_attention_heads * (mla.qk_nope_head_dim + mla.v_head_dim) * mla.kv_lora_rank
        latent *= config.num_hidden_layers
    rest = count.total - head - latent
    by_part = {"head": head, "latent": latent, "rest": rest}
    return sum(number * WEIGHT_BITS[formats.of(part)] for part, number in by_part.items()) / count.total


def weight_bytes(format: str, count: float) -> float:
    """Bytes of `count` weights; ConfigError naming the nearest for an unknown format."""
    return count * known(format, WEIGHT_BITS, "weight format") / 8


def cache_bytes_per_token(config: ModelConfig, format: str) -> float:
    """Bytes that one token takes in the cache of all layers; ConfigError for a format unknown or not of this model."""
    known(format, CACHE_FORMATS, "cache format")
    layers = config.num_hidden_layers
    match format:
        case "float32":
            return 4 * config.kv_elements_per_token
        case "bfloat16":
            return 2 * config.kv_elements_per_token
        case "fp8":
            return config.kv_elements_per_token
        case "6bit":
            return config.kv_elements_per_token * 6 / 8
        case "fp8_line":
            if not config.is_mla:
                raise ConfigError("cache format fp8_line holds a latent and a rope key: only MLA has them")
            latent, rope = config.mla.kv_lora_rank, config.mla.qk_rope_head_dim
            return layers * (latent + 4 * -(-latent // 128) + 2 * rope)
    values = _q8 if format == "q8" else _q6
    if config.is_mla:
        return layers * (values(config.mla.kv_lora_rank) + _q8(config.mla.qk_rope_head_dim))
    width = config.attention_head_dim
    return layers * config.num_key_value_heads * (_q8(width) + values(width))


def known(name: str, table: Mapping[str, T], what: str) -> T:
    """`table[name]`, or a ConfigError that says what there is."""
    if name not in table:
        raise ConfigError(f"no {what} {name!r}{nearest(name, table)}; known: {', '.join(table)}")
    return table[name]


def _q8(width: int) -> int:
    return width + 2 * -(-width // 32)


def _q6(width: int) -> int:
    return 24 * -(-width // 32) + 2 * -(-width // 64)
