"""Bytes and FLOPs of a step against sums done by hand, and routing's expectations against drawn tokens."""

import random

import pytest

from tapwater.config import preset, replace_fields
from tapwater.cost.counts import flops_per_token, layer_parameters, parameters
from tapwater.cost.formats import Formats
from tapwater.cost.traffic import expected_devices, expected_experts, moe_paper_flops, prefill_flops, step_traffic
from tapwater.errors import ConfigError

V2, LITE, V3 = preset("deepseek-v2"), preset("deepseek-v2-lite"), preset("deepseek-v3")
DENSE_67B, SMOL = preset("deepseek-67b"), preset("smollm2-135m")
FORMATS = {"formats": Formats("fp8", "bfloat16")}


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "deepseek-67b", "deepseek-moe-16b"])
def test_layers_add_up_to_the_model(name: str) -> None:
    config = preset(name)
    layers = [vars(layer_parameters(config, layer)) for layer in range(config.num_hidden_layers)]
    outside = 2 * config.vocab_size * config.hidden_size + config.hidden_size
    assert sum(sum(layer.values()) for layer in layers) + outside == parameters(config).total


def test_one_token_reads_what_it_activates() -> None:
    traffic = step_traffic(V2, batch=1, context=4096, **FORMATS)
    assert traffic.weights_bytes == pytest.approx(parameters(V2).active_without_input_embedding + V2.hidden_size)
    assert traffic.cache_read_bytes == 4096 * 69_120
    assert traffic.cache_written_bytes == 69_120
    assert traffic.bytes_per_token == traffic.total_bytes


def test_a_large_batch_reads_every_expert_once() -> None:
    traffic = step_traffic(V2, batch=2000, context=1000, **FORMATS)
    everything = parameters(V2).total - V2.vocab_size * V2.hidden_size + 2000 * V2.hidden_size
    assert traffic.weights_bytes == pytest.approx(everything, rel=1e-9)
    assert traffic.cache_read_bytes == 2000 * 1000 * 69_120
    assert traffic.bytes_per_token < step_traffic(V2, batch=20, context=1000, **FORMATS).bytes_per_token


def test_a_tied_embedding_is_read_as_head() -> None:
    traffic = step_traffic(SMOL, batch=1, context=1, formats=Formats("fp8", "fp8"))
    assert traffic.weights_bytes == parameters(SMOL).total + SMOL.hidden_size


@pytest.mark.parametrize(("batch", "context"), [(0, 1), (1, 0), (-3, 5)])
def test_impossible_steps_are_refused(batch: int, context: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        step_traffic(V2, batch=batch, context=context, **FORMATS)


def test_expectations_are_what_drawn_tokens_show() -> None:
    """Uniform routing under V2's limit: groups first, then experts; drawn 4000 times."""
    draw = random.Random(0)

    def token() -> set[int]:
        groups = draw.sample(range(8), 3)
        return set(draw.sample([group * 20 + i for group in groups for i in range(20)], 6))

    batches = [[token() for _ in range(32)] for _ in range(125)]
    touched = sum(len(set().union(*batch)) for batch in batches) / len(batches)
    assert expected_experts(V2, 32) == pytest.approx(touched, rel=0.01)
    for devices in (2, 4, 8, 16, 40):
        size = 160 // devices
        reached = [len({expert // size for expert in token}) for batch in batches for token in batch]
        assert expected_devices(V2, devices) == pytest.approx(sum(reached) / len(reached), rel=0.02)


def test_the_limit_brings_devices_down() -> None:
    free = replace_fields(V2, {"topk_method": "greedy", "n_group": 1, "topk_group": 1}, "without limit")
    assert expected_devices(V2, 8) == pytest.approx(2.77, abs=0.005)
    assert expected_devices(free, 8) == pytest.approx(4.46, abs=0.005)
    assert expected_experts(free, 100) == expected_experts(V2, 100)
    assert expected_devices(V2, 1) == 1
    assert expected_experts(V2, 0) == 0
    with pytest.raises(ConfigError, match="12 devices"):
        expected_devices(V2, 12)


def test_a_prompt_costs_the_sum_of_its_tokens() -> None:
    tokens = [flops_per_token(LITE, context, absorbed=False) for context in range(1, 101)]
    whole = prefill_flops(LITE, 100)
    assert whole.attention == pytest.approx(sum(each.attention for each in tokens))
    assert whole.matmul == pytest.approx(sum(each.matmul for each in tokens))
    assert prefill_flops(LITE, 100, causal=False).attention == pytest.approx(whole.attention * 200 / 101)
    # 51.8 GFLOP a token: 41.7 of products with weights and 10 of attention over half of 4096
    assert prefill_flops(V2, 4096).total / 4096 == pytest.approx(51.8e9, rel=0.005)


def test_the_older_rule_does_not_stretch() -> None:
    with pytest.raises(ConfigError, match="latent attention"):
        moe_paper_flops(V2)
    assert moe_paper_flops(DENSE_67B, tokens=1) == pytest.approx(moe_paper_flops(DENSE_67B) / 4096)
