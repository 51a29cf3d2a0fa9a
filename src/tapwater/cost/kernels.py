"""How long a step takes on tapwater's CPU kernels, from rates measured on that machine."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from tapwater.config import ModelConfig
from tapwater.cost.formats import Formats, known
from tapwater.cost.work import Attention, Work
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class KernelRates:
    """Seconds, as `tapwater hardware measure` took them with `threads` threads.

    `weight_s[format][i]` is for one weight, read from memory and multiplied with `rows[i]` rows. Attention of generated
    tokens costs `grouped_s[cache][i]` or, absorbed, `absorbed_s[cache][i]` for each cached number that `heads[i]` query
    heads share, and `attend_s` a request and layer; that of prompts `prompt_mac_s[form]` for each multiplication. What
    none of these explains: `row_s` for each number of a hidden state in a layer, `layer_s`, `expert_s` for an expert
    that is touched, `logit_s`, and the engine's `step_s` and `request_s`. `drift`: by what share rounds differed.
    """

    instruction_set: str
    threads: int
    rows: tuple[int, ...]
    weight_s: Mapping[str, tuple[float, ...]]
    heads: tuple[int, ...]
    grouped_s: Mapping[str, tuple[float, ...]]
    absorbed_s: Mapping[str, tuple[float, ...]]
    attend_s: float
    prompt_mac_s: Mapping[str, float]
    row_s: float
    layer_s: float
    expert_s: float
    logit_s: float
    step_s: float
    request_s: float
    max_context: int
    drift: float = 0.0


def kernel_seconds(rates: KernelRates, config: ModelConfig, work: Work, formats: Formats) -> dict[str, float]:
    """Seconds of a step, by part; ConfigError for a format that was not measured."""
    parts: dict[str, float] = {}
    for product in work.products:
        seconds = product.count * product.weights * weight_seconds(rates, formats.of(product.part), product.rows)
        parts[product.part] = parts.get(product.part, 0.0) + seconds
    parts["scores and values"] = _attention_seconds(rates, config, work.attention, formats.cache)
    layers = config.num_hidden_layers
    parts["layers"] = layers * (rates.layer_s + rates.row_s * work.rows * config.hidden_size)
    parts["layers"] += work.touched * rates.expert_s
    parts["engine"] = rates.step_s + work.sampled * (rates.request_s + rates.logit_s * config.vocab_size)
    return parts


def weight_seconds(rates: KernelRates, format: str, rows: float) -> float:
    """Seconds for one weight times `rows` rows."""
    return between(rates.rows, known(format, rates.weight_s, "measured weight format"), rows)


def between(points: tuple[int, ...], times: tuple[float, ...], point: float) -> float:
    """The time at `point`: a straight line between measured points, past the last in proportion to it."""
    if point >= points[-1]:
        return times[-1] * point / points[-1]
    if point <= points[0]:
        return times[0]
    right = bisect_left(points, point)
    share = (point - points[right - 1]) / (points[right] - points[right - 1])
    return times[right - 1] * (1 - share) + times[right] * share


def _attention_seconds(rates: KernelRates, config: ModelConfig, attention: Attention, cache: str) -> float:
    table = rates.absorbed_s if config.is_mla else rates.grouped_s
    times = known(cache, table, "measured cache format")
    if attention.is_prompt:
        return attention.macs * rates.prompt_mac_s[attention.form]
    heads = config.num_attention_heads / (1 if config.is_mla else config.num_key_value_heads)
    numbers = attention.positions * config.kv_elements_per_token
    return numbers * between(rates.heads, times, heads) + attention.requests * config.num_hidden_layers * rates.attend_s


def outside(rates: KernelRates, rows: float, context: float, weights_bytes: float) -> list[str]:
    """What of a step lies beyond what was measured, in words; such a prediction is an extrapolation."""
    reasons = []
    if rows > rates.rows[-1]:
        reasons.append(f"{rows:,.0f} rows, measured up to {rates.rows[-1]}")
    if context > rates.max_context:
        reasons.append(f"a context of {context:,.0f}, measured up to {rates.max_context:,}")
    if weights_bytes < 32e6:
        reasons.append("weights that fit a processor's caches, measured from memory")
    return reasons


def check_rates(rates: KernelRates) -> None:
    """ConfigError unless every table has a positive time for every row measured."""
    if not rates.rows or list(rates.rows) != sorted(set(rates.rows)):
        raise ConfigError("kernels: rows must rise")
    for format, times in rates.weight_s.items():
        if len(times) != len(rates.rows):
            raise ConfigError(f"kernels: weight_s.{format} has {len(times)} times for {len(rates.rows)} rows")
