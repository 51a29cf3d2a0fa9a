"""What a step computes, against the counts of parameters and FLOPs, which know nothing of steps."""

import pytest

from tapwater.config import ModelConfig, preset
from tapwater.cost.counts import flops_per_token, parameters
from tapwater.cost.traffic import prefill_flops
from tapwater.cost.work import decode_work, prefill_work

MODELS = [preset(name) for name in ("deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "deepseek-67b", "smollm2-135m")]
MODELS.append(preset("deepseek-moe-16b"))


def unpacked(config: ModelConfig) -> int:
    """Norms and gates: the counts have them, products do not."""
    by_part = parameters(config).by_part
    return by_part["norms"] + by_part["gates"]


@pytest.mark.parametrize("config", MODELS, ids=lambda config: f"{config.model_type}-{config.hidden_size}")
@pytest.mark.parametrize("context", [1, 5000])
def test_a_decoded_token_multiplies_what_the_counts_say(config: ModelConfig, context: int) -> None:
    counted = flops_per_token(config, context, absorbed=True)
    work = decode_work(config, 1, context)
    assert 2 * work.attention.macs == counted.attention
    assert sum(each.macs for each in work.products) == pytest.approx(counted.matmul / 2 - unpacked(config), rel=1e-4)
    assert work.macs < counted.total / 2


@pytest.mark.parametrize("config", MODELS, ids=lambda config: f"{config.model_type}-{config.hidden_size}")
def test_a_prompt_multiplies_what_the_counts_say_but_for_the_head(config: ModelConfig) -> None:
    counted = prefill_flops(config, 700)
    work = prefill_work(config, 700)
    assert 2 * work.attention.macs == counted.attention
    head = 2 * 699 * config.vocab_size * config.hidden_size  # of the last token alone logits are wanted
    expected = (counted.matmul - head) / 2 - 700 * unpacked(config)
    assert sum(each.macs for each in work.products) == pytest.approx(expected, rel=1e-4)


def test_experts_are_read_once_however_many_tokens_choose_them() -> None:
    lite = preset("deepseek-v2-lite")
    one, many = decode_work(lite, 1, 10), decode_work(lite, 10_000, 10)
    assert one.touched == pytest.approx(26 * 6)
    assert many.touched == pytest.approx(26 * 64)
    for work in (one, many):
        (routed,) = (each for each in work.products if each.part == "routed")
        assert routed.rows * routed.count == pytest.approx(26 * 6 * work.rows)


def test_chunks_attend_to_what_a_whole_prompt_does() -> None:
    for config in MODELS:
        whole = prefill_work(config, 1024).attention.macs
        halves = prefill_work(config, 512).attention.macs + prefill_work(config, 512, 512).attention.macs
        assert halves == whole
    v2 = MODELS[0]
    # but of latent attention a second chunk expands the first one's latents again
    latent = [each for each in prefill_work(v2, 512, 512).products if each.part == "latent"]
    assert [each.rows for each in latent] == [1024]
    assert prefill_work(v2, 512, 0, requests=3).rows == 3 * 512
