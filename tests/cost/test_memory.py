"""What fits: the arithmetic of one pool, and layouts that copy what they must."""

import pytest

from machines import H800
from tapwater.config import preset
from tapwater.cost.counts import parameters
from tapwater.cost.formats import Formats
from tapwater.cost.layout import Layout
from tapwater.cost.memory import largest_batch, pooled_cache_tokens, serving_memory, training_memory
from tapwater.cost.recipe import Recipe
from tapwater.cost.shards import stage_layers, stage_shards
from tapwater.errors import ConfigError

V2, V3, DENSE_67B = preset("deepseek-v2"), preset("deepseek-v3"), preset("deepseek-67b")
LLAMA, SMOL = preset("llama-3-70b"), preset("smollm2-135m")
BF16 = {"formats": Formats("bf16", "bfloat16")}
V2_TRAINING = Layout(dp=128, ep=8, pp=16)


@pytest.mark.parametrize(
    ("name", "weights", "cache", "tokens", "sequences"),
    [
        ("deepseek-v2", "fp8", "6bit", 13.13e6, {4096: 3204, 32768: 400, 131072: 100}),
        ("deepseek-v2", "fp8", "bfloat16", 4.92e6, {4096: 1201, 32768: 150, 131072: 37}),
        ("deepseek-v2", "bf16", "bfloat16", 1.51e6, {4096: 369, 32768: 46, 131072: 11}),
        ("deepseek-67b", "bf16", "bfloat16", 1.134e6, {4096: 276}),
        ("deepseek-67b", "fp8", "bfloat16", 1.307e6, {4096: 319}),
    ],
)
def test_tokens_in_a_pool_of_eight_80_gb(
    name: str, weights: str, cache: str, tokens: float, sequences: dict[int, int]
) -> None:
    found = pooled_cache_tokens(preset(name), 640e9, Formats(weights, cache))
    assert found == pytest.approx(tokens, rel=0.005)
    assert {length: found // length for length in sequences} == sequences


def test_a_pool_too_small_for_the_weights_holds_nothing() -> None:
    assert pooled_cache_tokens(V2, 320e9, **BF16) == 0


@pytest.mark.parametrize("layout", [Layout(), Layout(dp=2, tp=4, ep=8), Layout(tp=2, ep=2, pp=3), Layout(dp=8, ep=4)])
def test_shards_of_all_devices_are_the_model(layout: Layout) -> None:
    held = stage_shards(V2, layout)
    routed = sum(each.routed for each in held) * layout.ep
    assert routed == parameters(V2).by_part["routed experts"]
    dense = sum(each.dense for each in held) * layout.tp
    rest = parameters(V2).total - routed
    assert dense == rest if layout.tp == 1 else rest < dense < rest * layout.tp


def test_uneven_experts_count_for_the_fullest_device() -> None:
    layers = parameters(V2).by_part["routed experts"] / 160
    assert stage_shards(V2, Layout(dp=3, ep=3))[0].routed == 54 * layers


def test_a_tied_embedding_is_held_by_both_ends() -> None:
    one, two = stage_shards(SMOL, Layout()), stage_shards(SMOL, Layout(pp=2))
    assert one[0].weights == parameters(SMOL).total
    extra = SMOL.vocab_size * SMOL.hidden_size
    assert sum(each.weights for each in two) == parameters(SMOL).total + extra


@pytest.mark.parametrize(("layers", "pp"), [(60, 16), (61, 16), (27, 4), (5, 5), (95, 8), (7, 1)])
def test_stages_are_as_even_as_they_can_be(layers: int, pp: int) -> None:
    stages = stage_layers(layers, pp)
    assert [layer for stage in stages for layer in stage] == list(range(layers))
    sizes = [len(stage) for stage in stages]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)


def test_the_largest_batch_is_the_last_that_fits() -> None:
    for config, layout in (
        (V2, Layout(dp=8, ep=8)),
        (V2, Layout(tp=8, ep=8)),
        (LLAMA, Layout(tp=8)),
        (LLAMA, Layout(pp=4)),
    ):
        kinds = {"formats": Formats("fp8", "bfloat16")}
        most = largest_batch(config, H800, layout, context=4096, **kinds)
        assert most > 0
        assert most % layout.dp == 0
        fits = [
            serving_memory(config, H800, layout, requests=requests, context=4096, **kinds).fits
            for requests in (most, most + 1)
        ]
        assert fits == [True, False]


def test_latents_are_copied_and_heads_are_split() -> None:
    def cached(config: object, layout: Layout) -> float:
        return serving_memory(config, H800, layout, requests=8, context=1000, **BF16).cache_bytes

    assert cached(V2, Layout(tp=8, ep=8)) == 8 * 1000 * 69_120
    assert cached(V2, Layout(dp=8, ep=8)) == 1000 * 69_120
    assert cached(LLAMA, Layout(tp=4)) == 8 * 1000 * 327_680 / 4
    assert cached(LLAMA, Layout(tp=16)) == 8 * 1000 * 327_680 / 8  # eight heads of keys and values at the most
    assert largest_batch(V2, H800, Layout(dp=8, ep=8), context=4096, **BF16) == 0  # attention in bf16 eight times
    assert largest_batch(V2, H800, Layout(tp=4, ep=4), context=4096, **BF16) == 0


@pytest.mark.parametrize(("requests", "context"), [(-1, 100), (1, 0), (1, 200_000)])
def test_impossible_requests_are_refused(requests: int, context: int) -> None:
    with pytest.raises(ConfigError, match=r"requests must be|context must be"):
        serving_memory(V2, H800, Layout(tp=8, ep=8), requests=requests, context=context, **BF16)


def test_parts_of_training_add_up() -> None:
    memory = training_memory(V2, H800, V2_TRAINING, Recipe(4096, 9216, schedule="zb1p", recomputation="selective"))
    assert sum(memory.by_part.values()) == memory.total_bytes
    assert list(memory.by_part) == ["weights", "cache", "activation", "gradient", "optimizer"]
    # 2.51 billion weights on a middle stage of 3.75 layers; the fullest has four
    assert memory.weights_bytes == pytest.approx(2 * 2.51e9 * 4 / 3.75, rel=0.01)
    assert memory.gradient_bytes == 2 * memory.weights_bytes
    assert memory.fits


def test_what_v2_and_v3_trained_with_fits_and_plain_activations_do_not() -> None:
    v3 = Layout(dp=128, ep=64, pp=16)
    for config, layout, schedule, precision in (
        (V2, V2_TRAINING, "zb1p", "bf16"),
        (V3, v3, "dualpipe", "fp8"),
    ):
        fits = {}
        for kind in ("none", "selective", "full"):
            recipe = Recipe(4096, 15360, schedule=schedule, recomputation=kind, precision=precision)
            fits[kind] = training_memory(config, H800, layout, recipe).fits
        assert fits == {"none": False, "selective": True, "full": True}


def test_zero_divides_by_the_holders_of_the_same_weights() -> None:
    def optimizer(layout: Layout, optimizer: str = "adamw") -> float:
        return training_memory(V2, H800, layout, Recipe(4096, 256, optimizer=optimizer)).optimizer_bytes

    routed = parameters(V2).by_part["routed experts"]
    dense = parameters(V2).total - routed
    assert optimizer(Layout(dp=16, ep=16)) == pytest.approx(12 * (dense / 16 + routed / 16))
    assert optimizer(Layout(dp=16, ep=4)) == pytest.approx(12 * (dense / 16 + routed / 4 / 4))
    assert optimizer(Layout(dp=16, ep=16), "muon") == pytest.approx(optimizer(Layout(dp=16, ep=16)) * 8 / 12)


def test_activations_of_a_dense_layer_by_hand() -> None:
    layout = Layout(dp=8, tp=8)
    memory = training_memory(LLAMA, H800, layout, Recipe(1024, 8))
    layer = 4 * 8192 + 2 * 64 * 128 / 8 + 2 * 8 * 128 / 8 + 3 * 28672 / 8
    assert memory.activation_bytes == pytest.approx(1024 * (2 * 80 * layer + 4 * 128256 / 8))
