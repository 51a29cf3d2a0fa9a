"""Every published number that the project claims to reproduce: one table, each row computed by our own code."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import pytest
import torch

from ablation import with_mha
from machines import H800
from sheets import V2_NODE
from tapwater.config import BalanceConfig, ModelConfig, preset, replace_fields
from tapwater.cost.compare import LAUNCH, compare_prices, find_price, revenue_per_hour
from tapwater.cost.counts import grouped_kv_elements, parameters, training_flops_per_token
from tapwater.cost.formats import Formats, cache_bytes_per_token
from tapwater.cost.layout import Layout
from tapwater.cost.memory import largest_batch, pooled_cache_tokens, serving_memory
from tapwater.cost.placement import experts_per_device, place_experts, placement_of
from tapwater.cost.plan import layouts
from tapwater.cost.production import PUBLISHED, account, published_day
from tapwater.cost.throughput import Serving, decode, prefill
from tapwater.cost.traffic import moe_paper_flops, prefill_flops
from tapwater.cost.training import step_decay, training_days, training_mfu, training_usd
from tapwater.engine.latent_cache import LatentCache
from tapwater.model import Transformer
from tapwater.model.balance import balance_losses
from tapwater.model.gate import Gate, Routing
from tapwater.model.rope import inverse_frequencies, rotation, softmax_scale, yarn_mscale
from tiny import CONFIGS

V2, LITE, V3 = preset("deepseek-v2"), preset("deepseek-v2-lite"), preset("deepseek-v3")
DENSE_67B, DENSE_7B, MOE_16B = preset("deepseek-67b"), preset("deepseek-7b"), preset("deepseek-moe-16b")
SMALL_MHA, LARGE_MHA = with_mha(LITE, 16), with_mha(V2, 56)  # 56 heads are inferred from the cache size itself
# Not presets: our configuration refuses Qwen's attention biases and Llama 3.1's rope scaling. Neither is in the cache.
QWEN_72B = preset("llama-3-70b")  # the same 80 layers with 8 key-value heads of 128
LLAMA_405B = replace_fields(
    preset("llama-3-70b"),
    {"num_hidden_layers": 126, "hidden_size": 16384, "num_attention_heads": 128, "intermediate_size": 53248},
    "llama-3.1-405b's attention",
)
TWO_USD = Decimal(2)
# GPU-hours per 10^12 tokens: DeepSeek-V2 report section 3.2.3, DeepSeek-V3 report Table 1
HOURS = {"67B": Decimal(300_600), "V2": Decimal(172_800), "V3": Decimal(180_000)}

# The README of github.com/deepseek-ai/EPLB: two layers' loads, and the map it prints for each.
EPLB_EXAMPLE = (
    (
        (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
        (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    ),
    (
        (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
        (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
    ),
)


@dataclass(frozen=True)
class Row:
    id: int
    quantity: str
    source: str
    published: float
    ours: Callable[[], float]
    rel: float = 0.0
    abs: float = 0.0
    at_most: bool = False  # ours may also be lower
    at_least: bool = False  # ours may also be higher


def kilo(number: float) -> float:
    """As tables print it: thousands with one decimal."""
    return round(number / 1e3, 1)


def saved(ours: float, theirs: float) -> float:
    return 1 - ours / theirs


def bf16(config: ModelConfig) -> float:
    return cache_bytes_per_token(config, "bfloat16")


def total(config: ModelConfig) -> int:
    return parameters(config).total


def active(config: ModelConfig) -> int:
    return parameters(config).active_without_input_embedding


def mfu(config: ModelConfig, name: str) -> float:
    hours = float(HOURS[name])
    peak = H800.flops_per_s["bf16"].value
    return training_mfu(config, sequence=4096, tokens=1e12, device_hours=hours, peak=peak)


def fits_bf16(devices: int) -> bool:
    layout = Layout(tp=devices, ep=devices)
    formats = Formats("bf16", "bfloat16")
    return serving_memory(V2, H800, layout, requests=1, context=4096, formats=formats).fits


def stretched_pairs() -> tuple[list[bool], list[bool]]:
    """Of each rotated pair: whether YaRN slows it at all, and whether by the whole factor."""
    plain = V2.rope_theta ** -(torch.arange(0, V2.rope_dim, 2) / V2.rope_dim)
    ratio = inverse_frequencies(V2) / plain
    return [bool(each < 1 - 1e-6) for each in ratio], [bool(each < 1 / 40 + 1e-6) for each in ratio]


def balance_floor() -> float:
    """V2's three losses when every token uses two experts on each of three devices, all evenly."""
    rows = [
        [
            device * 20 + (token // 8 * 2 + i) % 20
            for device in ((token + step) % 8 for step in range(3))
            for i in (0, 1)
        ]
        for token in range(1280)
    ]
    ids, scores = torch.tensor(rows), torch.full((1280, 160), 1 / 160)
    return float(balance_losses(Routing(ids, scores.gather(1, ids), scores), (1280,), BalanceConfig()).total)


@functools.cache
def chosen_experts() -> torch.Tensor:
    gate = Gate(V2)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(gate.weight, 0, 0.02, generator=generator)
    return gate(torch.randn(500, V2.hidden_size, generator=generator)).expert_ids_TK


def most_distinct(ids_TK: torch.Tensor) -> float:
    return max(len(set(row)) for row in ids_TK.tolist())


@torch.no_grad()
def absorbed_minus_naive(dtype: torch.dtype) -> float:
    """Largest difference of the two forms of latent attention, relative to the largest output."""
    config = CONFIGS["v2"]
    model = Transformer.random(config, seed=3).to(dtype)
    attention = model.layers[1].self_attn
    rows = torch.randn(40, config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    turned = rotation(config, torch.arange(40))
    view = LatentCache(model, num_pages=12, page_size=4).view([list(range(11, 0, -1))], [40], [40], 0)
    attention(rows, turned, view, 1)
    part = view.select(lambda query, context: True)
    queries = attention.queries(rows, turned)
    absorbed, naive = (form(*queries, view.pages_LPSX[1], part) for form in (attention.absorb, attention.expand))
    return float((absorbed - naive).abs().max() / naive.abs().max())


def busiest(layer: int) -> float:
    """Our balancer's busiest device over that of the printed map."""
    loads, printed = EPLB_EXAMPLE[layer]
    own = place_experts(loads, num_slots=16, num_devices=8, num_nodes=2, num_groups=4)
    return max(own.device_loads) / max(placement_of(loads, printed, 8).device_loads)


def most_generated(config: ModelConfig, formats: Formats, context: int) -> float:
    """Tokens per second of one node whose memory is full of requests of that length, in the best layout."""
    rates = []
    for layout in layouts(config, H800, max_nodes=1):
        batch = largest_batch(config, H800, layout, context=context, formats=formats)
        if layout.devices == H800.devices and batch:
            rates.append(decode(Serving(config, H800, formats, layout), batch, context).tokens_per_s)
    return max(rates)


def v2_over_67b(context: int) -> float:
    """Formats as deployed: section 3.2.3; of 67B the report says nothing, so bfloat16."""
    dense = most_generated(DENSE_67B, Formats("bf16", "bfloat16"), context)
    return most_generated(V2, AS_DEPLOYED, context) / dense


def v2_prompts(context: int) -> float:
    return prefill(Serving(V2, H800, AS_DEPLOYED, Layout(dp=8, ep=8), chunk_tokens=8192), context).tokens_per_s


def mfu_of_prompts(rate: float, context: int) -> float:
    """Share of the fp8 peak that prompt tokens at that rate take; the head counted for each, an upper bound."""
    return rate * prefill_flops(V2, context).total / context / (8 * H800.flops_per_s["fp8"].value)


def ratio(model: str, kind: str) -> float:
    ours = find_price(LAUNCH)
    (compared,) = compare_prices(ours, [find_price(model)])
    return float(getattr(compared, kind))


AS_DEPLOYED = Formats("fp8", "6bit")
DAY, LAUNCH_PRICE = account(published_day()), find_price(LAUNCH).usd
assert LAUNCH_PRICE is not None

V2R, V3R, MOE, ISCA = "V2 report", "V3 report", "DeepSeekMoE paper", "ISCA 2025 paper (arXiv 2505.09343)"
OII = "open-infra-index, day 6"
DERIVED = "derived from published numbers, itself not published"

ROWS = [
    Row(1, "V2 weights", f"{V2R}, abstract", 236e9, lambda: total(V2), rel=0.002),
    Row(1, "V2 weights, exactly", "sum of the matrices", 235_741_434_880, lambda: total(V2)),
    Row(2, "V2 activated", f"{V2R}, abstract", 21e9, lambda: active(V2), rel=0.025),
    Row(3, "Lite weights", f"{V2R}, appendix B", 15.7e9, lambda: total(LITE), rel=0.001),
    Row(3, "Lite weights, exactly", "sum of the matrices", 15_706_484_224, lambda: total(LITE)),
    Row(4, "Lite activated", f"{V2R}, appendix B", 2.4e9, lambda: active(LITE), rel=0.03),
    Row(5, "small MHA weights", f"{V2R}, Table 9", 15.8e9, lambda: total(SMALL_MHA), rel=0.015),
    Row(5, "small MHA activated", f"{V2R}, Table 9", 2.5e9, lambda: active(SMALL_MHA), rel=0.015),
    Row(6, "MoE 16B weights", f"{V2R}, Table 6", 16.4e9, lambda: total(MOE_16B), rel=0.015),
    Row(6, "MoE 16B activated", f"{V2R}, Table 6", 2.8e9, lambda: parameters(MOE_16B).active, rel=0.015),
    Row(7, "67B weights", MOE, 67.4e9, lambda: total(DENSE_67B), rel=0.001),
    Row(7, "67B weights, exactly", "sum of the matrices", 67_425_001_472, lambda: total(DENSE_67B)),
    Row(8, "7B weights", f"{V2R}, Table 6", 6.9e9, lambda: total(DENSE_7B), rel=0.005),
    Row(9, "V3 weights", f"{V3R}, abstract", 671e9, lambda: total(V3), rel=0.005),
    Row(9, "V3 activated", "V3 repository, README_WEIGHTS", 36.7e9, lambda: active(V3), rel=0.005),
    Row(10, "V2 cached numbers, K", f"{V2R}, Table 9", 34.6, lambda: kilo(V2.kv_elements_per_token)),
    Row(11, "Lite cached numbers, K", f"{V2R}, Table 9", 15.6, lambda: kilo(LITE.kv_elements_per_token)),
    Row(12, "small MHA cached, K", f"{V2R}, Table 9", 110.6, lambda: kilo(SMALL_MHA.kv_elements_per_token)),
    Row(13, "large MHA cached, K", f"{V2R}, Table 9", 860.2, lambda: kilo(LARGE_MHA.kv_elements_per_token)),
    Row(
        *(14, "small MLA over MHA", f"{V2R}, appendix D.2", 0.14),
        lambda: LITE.kv_elements_per_token / SMALL_MHA.kv_elements_per_token,
        abs=0.005,
    ),
    Row(
        *(14, "large MLA over MHA", f"{V2R}, appendix D.2", 0.04),
        lambda: V2.kv_elements_per_token / LARGE_MHA.kv_elements_per_token,
        abs=0.005,
    ),
    Row(
        15, "MLA in GQA groups", f"{V2R}, Table 1", 2.25, lambda: V2.kv_elements_per_token / grouped_kv_elements(V2, 1)
    ),
    Row(
        *(16, "cache saved: V2 in 6 bits, 67B in bf16", f"{V2R}, abstract", 0.933),
        lambda: saved(cache_bytes_per_token(V2, "6bit"), bf16(DENSE_67B)),
        abs=0.001,
    ),
    Row(17, "67B cache, bytes", f"{V2R}, Figure 1b (read off)", 390e3, lambda: bf16(DENSE_67B), rel=0.01),
    Row(
        *(18, "V2 cache in 6 bits, bytes", f"{V2R}, Figure 1b (read off)", 26e3),
        lambda: cache_bytes_per_token(V2, "6bit"),
        rel=0.03,
    ),
    Row(19, "cache saved, both in bf16", DERIVED, 0.822, lambda: saved(bf16(V2), bf16(DENSE_67B)), abs=0.001),
    Row(20, "V3 cache, bytes", f"{ISCA}, Table 1", 70_272, lambda: bf16(V3)),
    Row(21, "Qwen-72B cache, bytes", f"{ISCA}, Table 1", 327_680, lambda: bf16(QWEN_72B)),
    Row(21, "Llama-405B cache, bytes", f"{ISCA}, Table 1", 516_096, lambda: bf16(LLAMA_405B)),
    Row(
        *(22, "latent over 2 d, V2: an interpretation", "press, July 2024", 0.05),
        lambda: V2.mla.kv_lora_rank / (2 * V2.hidden_size),
        abs=0.01,
    ),
    Row(
        *(22, "latent over 2 d, Lite: an interpretation", "press, July 2024", 0.13),
        lambda: LITE.mla.kv_lora_rank / (2 * LITE.hidden_size),
        abs=0.01,
    ),
    Row(
        *(23, "training saved", f"{V2R}, abstract", 0.425),
        lambda: float(saved(training_usd(HOURS["V2"], TWO_USD), training_usd(HOURS["67B"], TWO_USD))),
        abs=0.001,
    ),
    Row(24, "V2 training FLOPs", f"{ISCA}, Table 2", 155e9, lambda: training_flops_per_token(V2, 4096).total, rel=0.01),
    Row(25, "V3 training FLOPs", f"{ISCA}, Table 2", 250e9, lambda: training_flops_per_token(V3, 4096).total, rel=0.01),
    Row(26, "67B FLOPs per 4K tokens", MOE, 2057.5e12, lambda: moe_paper_flops(DENSE_67B), rel=0.001),
    Row(27, "7B FLOPs per 4K tokens", MOE, 183.5e12, lambda: moe_paper_flops(DENSE_7B), rel=0.001),
    Row(28, "MoE 16B FLOPs per 4K tokens", MOE, 74.4e12, lambda: moe_paper_flops(MOE_16B), rel=0.002),
    Row(28, "MoE 16B over 7B", MOE, 0.405, lambda: moe_paper_flops(MOE_16B) / moe_paper_flops(DENSE_7B), abs=0.002),
    Row(
        *(29, "V2 on 8.1T tokens, $", f"{V2R}, section 3.2.3, at the V3 report's $2", 2.80e6),
        lambda: float(training_usd(HOURS["V2"] * Decimal("8.1"), TWO_USD)),
        rel=0.001,
    ),
    Row(
        *(30, "V3 in all, $", f"{V3R}, Table 1", 5.576e6),
        lambda: float(training_usd(Decimal(2_664_000 + 119_000 + 5_000), TWO_USD)),
    ),
    Row(
        31, "V3 days per T tokens", f"{V3R}, section 1", 3.7, lambda: training_days(float(HOURS["V3"]), 2048), rel=0.02
    ),
    Row(32, "V2 MFU", DERIVED, 0.252, lambda: mfu(V2, "V2"), abs=0.01),
    Row(32, "67B MFU", DERIVED, 0.391, lambda: mfu(DENSE_67B, "67B"), abs=0.01),
    Row(32, "V3 MFU", DERIVED, 0.391, lambda: mfu(V3, "V3"), abs=0.01),
    *(
        Row(
            33,
            f"V2 over 67B, generation at {context}",
            f"{V2R}, section 3.2.3",
            5.76,
            lambda c=context: v2_over_67b(c),
            rel=0.25,
        )
        for context in (1024, 2048, 3072, 4096)  # the lengths served are not published; 67B ends at 4096
    ),
    Row(
        *(34, "V2 generation of a node, tokens/s", f"{V2R}, section 3.2.3", 50e3),
        lambda: most_generated(V2, AS_DEPLOYED, 1024),
        at_least=True,
    ),
    Row(35, "V2 prompts of a node, tokens/s", f"{V2R}, section 3.2.3", 100e3, lambda: v2_prompts(4096), at_least=True),
    Row(35, "the same as a share of the fp8 peak", DERIVED, 0.6, lambda: mfu_of_prompts(100e3, 4096), at_most=True),
    Row(
        *(36, "V2 tokens on 8 x 80 GB", f"{DERIVED}; 90% usable", 13_127_259),
        lambda: pooled_cache_tokens(V2, 8 * H800.memory_bytes.value, Formats("fp8", "6bit")),
    ),
    Row(37, "V2 in bf16 fits 8 x 80 GB", "V2 repository, README", True, lambda: fits_bf16(8)),
    Row(37, "V2 in bf16 fits 4 x 80 GB", "V2 repository, README", False, lambda: fits_bf16(4)),
    Row(38, "V3/R1 cost of a day, $", OII, 87_072, lambda: float(DAY.cost_usd)),
    Row(39, "V3/R1 revenue of a day, $", OII, 562_027, lambda: float(DAY.revenue_usd), rel=0.0005),
    Row(
        *(40, "margin on published revenue", OII, 5.45),
        lambda: float(PUBLISHED.revenue_usd / DAY.cost_usd - 1),
        abs=0.005,
    ),
    Row(
        40,
        "margin on our revenue",
        f"{OII}; as published revenue gives it",
        5.4547,
        lambda: float(DAY.margin),
        abs=0.005,
    ),
    Row(41, "nodes from throughput", OII, 226.75, lambda: float(DAY.nodes), rel=0.01),
    Row(42, "share of cache hits", OII, 0.563, lambda: float(DAY.hit_share), abs=0.001),
    Row(
        43,
        "experts a device, prefill",
        "open-infra-index, day 6",
        9,
        lambda: experts_per_device(V3, redundant=32, devices=32),
    ),
    Row(
        43,
        "experts a device, decode",
        "open-infra-index, day 6",
        2,
        lambda: experts_per_device(V3, redundant=32, devices=144),
    ),
    Row(44, "GPT-4-Turbo over V2, input", "press, July 2024", 70, lambda: ratio("GPT-4-Turbo-1106", "input"), rel=0.03),
    Row(45, "Llama-3-70B over V2, input", "V2 repository, price figure", 27.0, lambda: ratio("LLaMA 3 70B", "input")),
    Row(45, "Llama-3-70B over V2, output", "V2 repository, price figure", 40.5, lambda: ratio("LLaMA 3 70B", "output")),
    Row(
        *(46, "a node's revenue an hour at list, $", "third party", 50.4),
        lambda: float(revenue_per_hour(V2_NODE.rates.decode_tokens_per_s, LAUNCH_PRICE.output)),
    ),
    Row(
        *(47, "cost of V2 output, $ per M", DERIVED, 0.0889),
        lambda: float(V2_NODE.costs("USD").output),
        abs=0.00005,
    ),
    Row(47, "the same in yuan at 7.2", DERIVED, 0.64, lambda: float(V2_NODE.costs("CNY").output), abs=0.005),
    Row(48, "YaRN: last pair kept", f"{V2R}, section 3.1.4", 10, lambda: stretched_pairs()[0].index(True) - 1),
    Row(48, "YaRN: first pair stretched", f"{V2R}, section 3.1.4", 23, lambda: stretched_pairs()[1].index(True)),
    Row(48, "YaRN: sqrt(t)", f"{V2R}, section 3.1.4", 1.2608, lambda: yarn_mscale(40, 0.707), abs=1e-4),
    Row(48, "YaRN: softmax scale", "config.json of the checkpoint", 0.11472, lambda: softmax_scale(V2), abs=1e-4),
    Row(
        49, "learning rate after one drop", f"{V2R}, section 3.1.2", 7.584e-5, lambda: step_decay(2.4e-4, 1), rel=1e-12
    ),
    Row(49, "learning rate after two", f"{V2R}, section 3.1.2", 2.396544e-5, lambda: step_decay(2.4e-4, 2), rel=1e-12),
    Row(50, "balance losses at balance", f"{V2R}, section 3.1.2", 0.073, balance_floor, abs=1e-6),
    Row(
        51,
        "devices of a token",
        f"{V2R}, section 2.2.2",
        3,
        lambda: most_distinct(chosen_experts() // 20),
        at_most=True,
    ),
    Row(51, "experts of a token", f"{V2R}, section 3.1.2", 6, lambda: most_distinct(chosen_experts())),
    Row(
        52, "absorbed minus naive, fp32", f"{V2R}, appendix C", 0, lambda: absorbed_minus_naive(torch.float32), abs=1e-5
    ),
    Row(
        52,
        "absorbed minus naive, bf16",
        f"{V2R}, appendix C",
        0,
        lambda: absorbed_minus_naive(torch.bfloat16),
        abs=1e-2,
    ),
    Row(53, "busiest device, layer 0", "EPLB, README", 1, lambda: busiest(0), rel=1e-12, at_most=True),
    Row(53, "busiest device, layer 1", "EPLB, README", 1, lambda: busiest(1), rel=1e-12, at_most=True),
    Row(
        *(54, "V2 over MHA of its 128 heads", DERIVED, 0.01758),
        lambda: V2.kv_elements_per_token / grouped_kv_elements(V2, 128),
        abs=5e-6,
    ),
    Row(55, "fp8 cache line, bytes", "FlashMLA, README", 656, lambda: cache_bytes_per_token(V2, "fp8_line") / 60),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.id}: {row.quantity}")
def test_published(row: Row) -> None:
    ours = row.ours()
    if (row.at_most and ours < row.published) or (row.at_least and ours > row.published):
        return
    assert ours == pytest.approx(row.published, rel=row.rel, abs=row.abs)


def test_no_row_is_forgotten() -> None:
    found = [row.id for row in ROWS]
    assert found == sorted(found)
    assert set(found) == set(range(1, 56))
