"""Training by roofline: parts by hand, schedules by Table 2, predictions against what DeepSeek reported."""

import dataclasses
from decimal import Decimal

import pytest

from machines import H800
from tapwater.config import ModelConfig, preset
from tapwater.cost.collectives import expert_exchange_s
from tapwater.cost.counts import training_flops_per_token
from tapwater.cost.layout import Layout
from tapwater.cost.memory import training_memory
from tapwater.cost.pipeline import bubble_s
from tapwater.cost.recipe import Recipe
from tapwater.cost.training import step_decay, training_days, training_mfu, training_step, training_usd
from tapwater.errors import ConfigError

V2, V3, DENSE_67B = preset("deepseek-v2"), preset("deepseek-v3"), preset("deepseek-67b")

V2_LAYOUT = Layout(dp=128, ep=8, pp=16)  # section 3.1.3; 2048 devices are assumed, the report does not say
V3_LAYOUT = Layout(dp=128, ep=64, pp=16)
DENSE_LAYOUTS = [Layout(dp=32, tp=2, pp=16), Layout(dp=32, tp=4, pp=8), Layout(dp=32, tp=8, pp=4)]  # none published
V2_RECIPE = Recipe(4096, 9216, schedule="zb1p", recomputation="selective", overlap="shared_experts")
V3_RECIPE = Recipe(
    *(4096, 15360),
    schedule="dualpipe",
    recomputation="selective",
    overlap="all",
    communication_share=20 / 132,
    optimizer="adamw_bf16",
    precision="fp8",
)
DENSE_RECIPE = Recipe(4096, 4608, schedule="1f1b", recomputation="selective")

PEAK = H800.flops_per_s["bf16"].value
LINK, NETWORK = 200e9 * 0.765, 50e9 * 0.765

# GPU-hours per 10^12 tokens: reported, and the range of predicted over reported that is allowed. The ranges are wide
# because the model is: it leaves out imbalance, restarts, evaluation and every kernel that is not a plain product.
RUNS = [
    ("V2", V2, V2_LAYOUT, V2_RECIPE, 172.8e3, (0.55, 0.85)),
    ("V3", V3, V3_LAYOUT, V3_RECIPE, 180e3, (0.5, 0.85)),
    *((f"67B {layout}", DENSE_67B, layout, DENSE_RECIPE, 300.6e3, (0.8, 1.6)) for layout in DENSE_LAYOUTS),
]


@pytest.mark.parametrize(
    ("name", "config", "layout", "recipe", "reported", "bounds"), RUNS, ids=[run[0] for run in RUNS]
)
def test_predicted_hours_lie_where_the_documentation_says(
    name: str, config: ModelConfig, layout: Layout, recipe: Recipe, reported: float, bounds: tuple[float, float]
) -> None:
    assert training_memory(config, H800, layout, recipe).fits
    step = training_step(config, H800, layout, recipe)
    ratio = step.device_hours(1e12) / reported
    print(f"{name}: {step.device_hours(1e12) / 1e3:.1f}K, {ratio - 1:+.0%}; {step.by_part}")
    assert bounds[0] < ratio < bounds[1]


def test_v2_is_predicted_to_be_far_cheaper_than_67b() -> None:
    """42.5% reported; 55% to 75% predicted, because V2's own troubles are what the roofline does not see."""
    v2 = training_step(V2, H800, V2_LAYOUT, V2_RECIPE).device_hours(1e12)
    dense = [training_step(DENSE_67B, H800, layout, DENSE_RECIPE).device_hours(1e12) for layout in DENSE_LAYOUTS]
    assert [0.55 < 1 - v2 / each < 0.75 for each in dense] == [True] * 3


def test_parts_add_up_and_a_plain_step_is_flops_over_rates() -> None:
    recipe = Recipe(4096, 64)
    step = training_step(DENSE_67B, H800, Layout(), recipe)
    assert sum(step.by_part.values()) == step.step_s
    flops = training_flops_per_token(DENSE_67B, 4096)
    tokens = recipe.tokens
    assert step.matmul_s == pytest.approx(tokens * flops.matmul / (PEAK * H800.efficiency.matmul.value))
    assert step.attention_s == pytest.approx(tokens * flops.attention / (PEAK * H800.efficiency.attention.value))
    waiting = ("expert_exchange", "tensor_exchange", "bubble", "gradient_exchange", "recomputation")
    assert [step.by_part[name] for name in waiting] == [0] * 5
    assert step.mfu == pytest.approx(flops.total * tokens / step.step_s / PEAK)
    assert step.device_hours(tokens) == pytest.approx(step.step_s / 3600)


def test_more_devices_take_less_time_but_more_hours() -> None:
    few = training_step(V2, H800, Layout(dp=32, ep=8, pp=16), V2_RECIPE)
    many = training_step(V2, H800, Layout(dp=256, ep=8, pp=16), V2_RECIPE)
    assert many.step_s < few.step_s / 4
    assert many.device_hours(1e12) > few.device_hours(1e12)


def test_recomputation_costs_a_forward_at_the_most() -> None:
    def step(kind: str) -> tuple[float, float]:
        found = training_step(V2, H800, V2_LAYOUT, dataclasses.replace(V2_RECIPE, recomputation=kind))
        return found.recomputation_s, found.matmul_s + found.attention_s + found.activation_s

    assert step("none")[0] == 0
    assert 0 < step("selective")[0] < step("full")[0] < step("none")[1] / 2


def test_bubbles_of_table_2() -> None:
    times = {"forward_s": 1.0, "backward_s": 2.0, "weight_s": 1.0}
    assert bubble_s("1f1b", 16, **times) == 15 * 3
    assert bubble_s("zb1p", 16, **times) == 15 * (1 + 2 - 2)
    assert bubble_s("dualpipe", 16, **times) == 7 * (3 + 2 - 3)
    for schedule in ("1f1b", "zb1p"):
        assert bubble_s(schedule, 1, **times) == 0
    with pytest.raises(ConfigError, match="even number of pipeline stages"):
        bubble_s("dualpipe", 5, **times)
    with pytest.raises(ConfigError, match="did you mean 'zb1p'"):
        bubble_s("zbp1", 4, **times)


def test_expert_exchange_by_hand() -> None:
    recipe = Recipe(4096, 256)
    # EP8 in a node: 2.77 devices a token, seven in eight of them others, 5120 numbers there and back in bf16
    inside = expert_exchange_s(V2, H800, Layout(dp=8, ep=8), recipe, 1000)
    assert inside == pytest.approx(1000 * 2.769 * 7 / 8 * 5120 * 4 / LINK, rel=0.001)
    # EP64 over 8 nodes: at most 4 nodes a token, so the network bounds it
    between = expert_exchange_s(V3, H800, Layout(dp=64, ep=64), recipe, 1000)
    assert 1000 * 3 * 7 / 8 * 7168 * 4 / NETWORK < between < 1000 * 4 * 7 / 8 * 7168 * 4 / NETWORK
    assert expert_exchange_s(V2, H800, Layout(), recipe, 1000) == 0
    with pytest.raises(ConfigError, match="ep 20 is not a multiple"):
        expert_exchange_s(V2, H800, Layout(dp=20, ep=20), recipe, 1000)


def test_overlap_hides_what_computation_covers() -> None:
    def waits(overlap: str) -> float:
        recipe = dataclasses.replace(V2_RECIPE, overlap=overlap)
        return training_step(V2, H800, V2_LAYOUT, recipe).expert_exchange_s

    assert waits("none") > waits("shared_experts") > waits("all") == 0


def test_processors_that_move_tokens_do_not_compute() -> None:
    plain = training_step(V3, H800, V3_LAYOUT, dataclasses.replace(V3_RECIPE, communication_share=0.0))
    reserved = training_step(V3, H800, V3_LAYOUT, V3_RECIPE)
    assert reserved.matmul_s == pytest.approx(plain.matmul_s * 132 / 112)
    assert reserved.attention_s == pytest.approx(plain.attention_s * 132 / 112)


def test_a_machine_without_a_network_is_named() -> None:
    lonely = dataclasses.replace(H800, network_bytes_per_s=None, link_bytes_per_s=None)
    for layout in (V2_LAYOUT, Layout(dp=2), Layout(tp=2)):
        with pytest.raises(ConfigError, match=r"h800 has no (link|network)_bytes_per_s"):
            training_step(V2, lonely, layout, Recipe(4096, 256))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"sequence": -1}, "sequence must be at least 1"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"schedule": "dualpip"}, "did you mean 'dualpipe'"),
        ({"recomputation": "some"}, "no recomputation 'some'"),
        ({"overlap": "shared"}, "no overlap 'shared'"),
        ({"communication_share": 1.0}, "communication_share must be"),
        ({"communication_share": float("nan")}, "communication_share must be"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"precision": "int8"}, "no training precision 'int8'"),
        ({"batch": 100}, "batch 100 is not a multiple of dp 128"),
        ({"sequence": 2**20}, "exceeds the model's 163840 positions"),
        ({"schedule": "dualpipe", "batch": 128}, "even number of micro-batches"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training_step(V2, H800, V2_LAYOUT, Recipe(**({"sequence": 4096, "batch": 9216} | changes)))


def test_a_precision_the_machine_lacks_is_named() -> None:
    older = dataclasses.replace(H800, flops_per_s={"bf16": H800.flops_per_s["bf16"]})
    with pytest.raises(ConfigError, match="precision 'fp8'"):
        training_step(V3, older, V3_LAYOUT, V3_RECIPE)


def test_absurd_numbers_are_named() -> None:
    reported = {"sequence": 4096, "tokens": 1e12, "device_hours": 180e3, "peak": 989e12}
    with pytest.raises(ConfigError, match="devices must be at least 1, got 0"):
        training_days(100, 0)
    with pytest.raises(ConfigError, match="device_hours must be at least 0, got -1"):
        training_usd(Decimal(-1), Decimal(2))
    with pytest.raises(ConfigError, match="times must be at least 0"):
        step_decay(1e-4, -1)
    for name in reported:
        with pytest.raises(ConfigError, match=f"{name} must be above 0, got nan"):
            training_mfu(V3, **(reported | {name: float("nan")}))


def test_money_stays_decimal() -> None:
    assert training_usd(Decimal("1399680"), Decimal("2")) == Decimal("2799360")
    step = training_step(V2, H800, V2_LAYOUT, V2_RECIPE)
    price = step.usd(8.1e12, Decimal("2"))
    assert price == price.quantize(Decimal("0.01"))
    assert float(price) == pytest.approx(2 * step.device_hours(8.1e12), rel=1e-8)
    with pytest.raises(TypeError):
        training_usd(1399680.0, Decimal("2"))


@pytest.mark.parametrize(
    ("batch", "tokens"), [(9216, 37_748_736), (2304, 9_437_184), (4608, 18_874_368), (15360, 62_914_560)]
)
def test_tokens_of_a_step(batch: int, tokens: int) -> None:
    """V2 after and before its ramp, V2-Lite and 67B, V3; sequences of 4096."""
    assert Recipe(4096, batch).tokens == tokens
