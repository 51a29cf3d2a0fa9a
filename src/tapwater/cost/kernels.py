"""How long a step takes on tapwater's CPU kernels, from rates measured on that machine."""

from bisect import bisect_left

from tapwater.config import ModelConfig
from tapwater.cost.formats import Formats, known
from tapwater.cost.kernel_rates import KernelRates
from tapwater.cost.work import Attention, Work


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


def outside(rates: KernelRates, config: ModelConfig, rows: float, context: float, weights_bytes: float) -> list[str]:
    """What of a step lies beyond what was measured, in words; such a prediction is an extrapolation."""
    reasons = []
    if rows > rates.rows[-1]:
        reasons.append(f"{rows:,.0f} rows, measured up to {rates.rows[-1]}")
    if context > rates.max_context:
        reasons.append(f"a context of {context:,.0f}, measured up to {rates.max_context:,}")
    heads = config.num_attention_heads // (1 if config.is_mla else config.num_key_value_heads)
    if heads > rates.heads[-1]:
        reasons.append(f"{heads} heads that share a cached number, measured up to {rates.heads[-1]}")
    if weights_bytes < 32e6:
        reasons.append("weights that fit a processor's caches, measured from memory")
    return reasons
