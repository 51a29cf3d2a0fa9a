"""Counts against published numbers and against the weights of real modules."""

import pytest

from ablation import with_mha
from tapwater.checkpoint.names import meta_model
from tapwater.config import ModelConfig, preset
from tapwater.cost.counts import (
    expand_kv_elements,
    flops_per_token,
    grouped_kv_elements,
    parameters,
    training_flops_per_token,
)
from tiny import CONFIGS, tiny_model

V2, LITE, V3 = preset("deepseek-v2"), preset("deepseek-v2-lite"), preset("deepseek-v3")
DENSE_67B, DENSE_7B, MOE_16B = preset("deepseek-67b"), preset("deepseek-7b"), preset("deepseek-moe-16b")


@pytest.mark.parametrize(
    ("config", "exact", "published", "tolerance"),
    [
        (V2, 235_741_434_880, 236e9, 0.002),
        (LITE, 15_706_484_224, 15.7e9, 0.001),
        (with_mha(LITE, 16), 15_787_866_112, 15.8e9, 0.015),
        (MOE_16B, 16_375_728_128, 16.4e9, 0.015),
        (DENSE_67B, 67_425_001_472, 67.4e9, 0.001),
        (DENSE_7B, 6_910_365_696, 6.9e9, 0.005),
        (preset("llama-3-70b"), 70_553_706_496, 70e9, 0.01),
    ],
)
def test_total_parameters(config: ModelConfig, exact: int, published: float, tolerance: float) -> None:
    assert parameters(config).total == exact
    assert exact == pytest.approx(published, rel=tolerance)
    assert sum(parameters(config).by_part.values()) == exact


def test_v3_total_parameters() -> None:
    # 671B; the routing biases are counted, the multi-token-prediction layer is not
    assert parameters(V3).total == 671_026_419_200
    assert parameters(V3).total == pytest.approx(671e9, rel=0.005)
    assert parameters(V3).mtp == pytest.approx(11.5e9, rel=0.01)


def test_activated_parameters_in_each_convention() -> None:
    assert parameters(V2).active_without_input_embedding == pytest.approx(21e9, rel=0.025)
    assert parameters(V2).active == 21_375_800_320
    assert parameters(V2).active_without_input_embedding == 20_851_512_320
    assert parameters(V2).active_without_embeddings == 20_327_224_320
    assert parameters(LITE).active_without_input_embedding == pytest.approx(2.4e9, rel=0.03)
    assert parameters(with_mha(LITE, 16)).active_without_input_embedding == pytest.approx(2.5e9, rel=0.015)
    assert parameters(MOE_16B).active == pytest.approx(2.8e9, rel=0.015)
    assert parameters(V3).active_without_input_embedding == pytest.approx(36.7e9, rel=0.005)


def test_cached_elements_per_token() -> None:
    small_mha, large_mha = with_mha(LITE, 16), with_mha(V2, 56)
    assert V2.kv_elements_per_token == 34_560  # Table 9: 34.6K
    assert LITE.kv_elements_per_token == 15_552  # 15.6K
    assert small_mha.kv_elements_per_token == 110_592  # 110.6K
    assert large_mha.kv_elements_per_token == 860_160  # 860.2K: 56 heads, inferred from this very number
    assert LITE.kv_elements_per_token / small_mha.kv_elements_per_token == pytest.approx(0.14, abs=0.005)
    assert V2.kv_elements_per_token / large_mha.kv_elements_per_token == pytest.approx(0.04, abs=0.005)
    # Table 1: MLA caches as much as grouped attention with 2.25 groups
    assert V2.kv_elements_per_token / grouped_kv_elements(V2, 1) == 2.25
    assert grouped_kv_elements(V2, 128) == 1_966_080
    assert expand_kv_elements(V2) == 2_457_600
    assert V3.kv_elements_per_token * 2 == 70_272
    assert preset("llama-3-70b").kv_elements_per_token == 163_840


def test_flops_per_token() -> None:
    assert training_flops_per_token(V2, 4096).total == pytest.approx(155e9, rel=0.01)
    assert training_flops_per_token(V3, 4096).total == pytest.approx(250e9, rel=0.01)
    assert training_flops_per_token(DENSE_67B, 4096).total == pytest.approx(418.6e9, rel=0.01)
    assert flops_per_token(V2, 1, absorbed=True).attention == 278_528 * 60
    assert flops_per_token(V2, 1, absorbed=False).attention == 81_920 * 60


@pytest.mark.parametrize("name", CONFIGS)
def test_the_count_is_the_number_of_weights(name: str) -> None:
    model = tiny_model(name)
    counted = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    assert parameters(CONFIGS[name]).total == counted


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3", "deepseek-67b", "smollm2-135m"])
def test_the_count_is_the_number_of_weights_of_published_models(name: str) -> None:
    config = preset(name)
    model = meta_model(config)
    counted = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    assert parameters(config).total + parameters(config).mtp == counted


def test_training_flops_with_and_without_the_masked_half() -> None:
    causal, whole = (training_flops_per_token(V2, 4096, causal=causal) for causal in (True, False))
    assert whole.matmul == causal.matmul
    assert whole.attention == 2 * causal.attention
