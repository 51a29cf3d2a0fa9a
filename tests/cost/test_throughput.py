"""Predicted rates: by hand where that can be done, and properties that must hold everywhere."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_rates import RATES, measured
from machines import H800
from tapwater.config import preset
from tapwater.cost.counts import parameters
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import machine
from tapwater.cost.kernels import between, kernel_seconds
from tapwater.cost.layout import Layout
from tapwater.cost.throughput import MEASURED, Serving, decode, prefill
from tapwater.cost.work import decode_work
from tapwater.errors import ConfigError

V2, LITE, V3, DENSE = (preset(name) for name in ("deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "deepseek-67b"))
SMOL = preset("smollm2-135m")
BF16, FP8 = Formats("bf16", "bfloat16"), Formats("fp8", "6bit")
V2_NODE = Serving(V2, H800, FP8, Layout(dp=8, ep=8))
V2_AT_8192 = replace(V2_NODE, chunk_tokens=8192)
HERE = Serving(LITE, measured(), Formats("q4", "bfloat16"))


def test_one_stream_reads_every_weight_once() -> None:
    step = decode(Serving(SMOL, H800, BF16), 1, 1).step_s
    read = 2 * parameters(SMOL).active_without_input_embedding
    assert step == pytest.approx(read / (H800.read_bytes_per_s.value * H800.efficiency.memory.value), rel=0.01)


def test_a_large_batch_is_bound_by_products() -> None:
    found = decode(Serving(SMOL, H800, BF16), 10**6, 1)
    peak = H800.flops_per_s["bf16"].value * H800.efficiency.matmul.value
    products = sum(seconds for part, seconds in found.parts.items() if part != "scores and values")
    assert products == pytest.approx(2 * 10**6 * parameters(SMOL).active_without_input_embedding / peak, rel=0.01)


def test_tensor_parallel_devices_share_products_and_pay_for_their_sums() -> None:
    one, eight = (decode(Serving(DENSE, H800, BF16, Layout(tp=tp)), 64, 1000) for tp in (1, 8))
    assert eight.parts["dense"] == pytest.approx(one.parts["dense"] / 8)
    assert eight.parts["scores and values"] == pytest.approx(one.parts["scores and values"] / 8)
    sums = 2 * 95 * 2 * 7 / 8 * 64 * 8192 * 2 / (200e9 * H800.efficiency.network.value)
    assert eight.parts["tensor-parallel sums"] == pytest.approx(sums)
    # MLA's latent belongs to all heads: every device reads that of all eight requests
    copied = decode(Serving(V2, H800, FP8, Layout(tp=8, ep=8)), 8, 10**5).parts["scores and values"]
    read = H800.read_bytes_per_s.value * H800.efficiency.memory.value
    assert copied == pytest.approx(8 * 10**5 * 60 * 576 * 6 / 8 / read)


def test_a_pipeline_trades_latency_for_memory() -> None:
    flat, deep = (decode(Serving(DENSE, H800, BF16, Layout(tp=8 // pp, pp=pp)), 64, 1000) for pp in (1, 8))
    assert deep.parts["tensor-parallel sums"] == 0
    assert deep.step_s > flat.step_s


@settings(deadline=None)
@given(batch=st.integers(1, 20_000), context=st.integers(1, 100_000))
def test_more_requests_are_never_slower_in_all_and_never_faster_each(batch: int, context: int) -> None:
    for serving in (V2_NODE, Serving(DENSE, H800, BF16, Layout(tp=8))):
        few, many = decode(serving, batch, context), decode(serving, batch + 100, context)
        assert many.tokens_per_s >= few.tokens_per_s * (1 - 1e-9)
        assert many.step_s >= few.step_s * (1 - 1e-9)
        assert decode(serving, batch, context + 1).step_s >= few.step_s
        assert sum(few.parts.values()) == few.step_s
        assert few.low < few.tokens_per_s < few.high


@settings(deadline=None)
@given(prompt=st.integers(2_000, 50_000), share=st.floats(0.5, 0.99))
def test_cached_tokens_make_a_prompt_quicker(prompt: int, share: float) -> None:
    cached = int(share * prompt)
    for serving in (V2_NODE, HERE):
        whole, rest = prefill(serving, prompt), prefill(serving, prompt, cached)
        seconds = [prompt / whole.tokens_per_s, (prompt - cached) / rest.tokens_per_s]
        assert seconds[1] <= seconds[0] * (1 + 1e-9)


def test_v3_in_the_units_deepseek_runs() -> None:
    """EP32 and EP144 with redundant experts; what DeepSeek measured is in docs/concepts/cost.md beside these."""
    prompts = prefill(Serving(V3, H800, Formats("fp8", "bfloat16"), Layout(dp=32, ep=32), 8192), 4383, 2467)
    assert prompts.low < 4 * 73_700 * (4383 - 2467) / 4383 < prompts.high  # the mean of a day
    answers = decode(Serving(V3, H800, Formats("fp8", "bfloat16"), Layout(dp=144, ep=144)), 144 * 87, 4989)
    assert answers.low < 18 * 14_800 < answers.high  # the mean of a day


def test_fewer_requests_than_devices_leave_devices_idle() -> None:
    serving = Serving(V3, H800, Formats("fp8", "bfloat16"), Layout(dp=36, ep=36, pp=4))
    one, full = decode(serving, 1, 1000), decode(serving, 36 * 4, 1000)
    assert one.parts["attention"] == full.parts["attention"]
    assert one.step_s <= full.step_s
    assert one.tokens_per_s == pytest.approx(1 / one.step_s)


def test_compressions_of_latent_attention_are_not_split() -> None:
    tp1, tp8 = (decode(Serving(V2, H800, FP8, Layout(tp=tp, ep=tp)), 1, 1).parts["attention"] for tp in (1, 8))
    assert tp1 / 8 < tp8 < tp1


def test_devices_that_cannot_talk_are_refused() -> None:
    lonely = replace(H800, network_bytes_per_s=None)
    with pytest.raises(ConfigError, match="h800 has no network_bytes_per_s"):
        decode(Serving(V3, lonely, FP8, Layout(dp=16, ep=16)), 16, 100)
    with pytest.raises(ConfigError, match=r"a100-80 has no rate for fp8, it has .*choose another weight format"):
        decode(Serving(V2, machine("a100-80"), FP8, Layout(dp=8, ep=8)), 16, 100)
    with pytest.raises(ConfigError, match="measured alone: its layout is one device, not dp2"):
        Serving(LITE, measured(), BF16, Layout(dp=2))


@pytest.mark.parametrize(("batch", "context"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1), (1, float("inf"))])
def test_absurd_numbers_are_refused(batch: float, context: float) -> None:
    with pytest.raises(ConfigError, match="must be a positive number"):
        decode(HERE, batch, context)


def test_more_cached_than_there_is_prompt_is_refused() -> None:
    for cached in (10, 11, -1):
        with pytest.raises(ConfigError, match="cached_tokens must be from 0 to below prompt_tokens 10"):
            prefill(HERE, 10, cached)


def test_measured_rates_add_up_by_hand() -> None:
    parts = kernel_seconds(RATES, SMOL, decode_work(SMOL, 1, 100), Formats("q4", "bfloat16", head="q8"))
    weights = 3 * 576 * 1536 * 30
    assert parts["dense"] == pytest.approx(weights * 4e-11)
    assert parts["head"] == pytest.approx(49152 * 576 * 6e-11)
    numbers = 100 * SMOL.kv_elements_per_token  # three query heads share each
    assert parts["scores and values"] == pytest.approx(numbers * 3e-10 + 30 * 4e-6)
    assert parts["engine"] == pytest.approx(7e-5 + 2e-5 + 49152 * 2e-9)


def test_between_measured_points_lies_a_line() -> None:
    points, times = (1, 4, 16), (1.0, 4.0, 8.0)
    assert [between(points, times, point) for point in (0.5, 1, 2.5, 4, 10, 16, 32)] == [1, 1, 2.5, 4, 6, 8, 16]


def test_what_lies_outside_the_measured_range_says_so_and_is_less_certain() -> None:
    inside = decode(HERE, 8, 1000)
    assert inside.extrapolated == ()
    assert inside.low == pytest.approx(inside.tokens_per_s * MEASURED.low / (1 + RATES.drift))
    for batch, context, said in ((1000, 10, "1,000 rows"), (8, 20_000, "a context of 20,000")):
        outside = decode(HERE, batch, context)
        assert any(said in reason for reason in outside.extrapolated)
        assert outside.low / outside.tokens_per_s < inside.low / inside.tokens_per_s
    assert decode(V2_NODE, 4000, 1000).extrapolated == ("rates as published, none measured with this software",)
    wide = decode(replace(HERE, config=V2, formats=Formats("q4", "bfloat16")), 1, 100)
    assert any("128 heads that share a cached number, measured up to 64" in reason for reason in wide.extrapolated)


def test_a_batch_too_small_for_a_roofline_says_so() -> None:
    tiny = decode(Serving(SMOL, H800, BF16), 1, 10)
    assert any("launches and latencies weigh more" in reason for reason in tiny.extrapolated)
    assert tiny.low < 1 / (30 * 100e-6)  # no thirty layers of launches take less than 100 us each


def test_two_halves_of_a_batch_read_all_weights_twice() -> None:
    """Waiting for experts' tokens or taking turns, whichever is quicker; never free."""
    far = replace(H800, link_bytes_per_s=replace(H800.link_bytes_per_s, value=9e12))
    slow = replace(H800, link_bytes_per_s=replace(H800.link_bytes_per_s, value=20e9))
    free, real, waits = (decode(replace(V2_NODE, machine=each), 4000, 1000) for each in (far, H800, slow))
    assert free.step_s < real.step_s < waits.step_s
    assert real.step_s < free.step_s + 0.02
    assert real.parts["routed"] in (
        free.parts["routed"],
        pytest.approx(2 * decode(V2_NODE, 2000, 1000).parts["routed"]),
    )


def test_formats_that_were_not_measured_are_refused() -> None:
    with pytest.raises(ConfigError, match="no measured weight format 'fp8'; known: q4, q8"):
        decode(replace(HERE, formats=FP8), 1, 1)
    with pytest.raises(ConfigError, match="no measured cache format '6bit'"):
        decode(replace(HERE, formats=Formats("q4", "6bit")), 1, 1)


def test_a_long_prompt_hides_the_way_to_experts_as_short_ones_do() -> None:
    """Half of a batch may be half of a prompt: tokens are what is cut in two."""
    short, long = (prefill(V2_AT_8192, tokens) for tokens in (4096, 8192))
    assert long.parts["waiting for experts' tokens"] <= short.parts["waiting for experts' tokens"] + 1e-9
    assert 0.7 * short.tokens_per_s < long.tokens_per_s < short.tokens_per_s  # longer prompts attend to more


def test_devices_share_the_tokens_of_a_prompt_that_their_experts_get() -> None:
    """Fewer experts a set, more sets: the same products in all."""
    layouts = (Layout(tp=8, ep=8), Layout(tp=8, ep=2))
    routed = [prefill(Serving(V2, H800, FP8, each, 2**16), 2**16).parts["routed"] for each in layouts]
    assert routed[1] == pytest.approx(routed[0], rel=0.01)


def test_prompts_past_the_measured_rows_say_so_and_chunks_are_filled() -> None:
    wide = prefill(replace(HERE, chunk_tokens=1024), 1024)
    assert any("1,024 rows" in reason for reason in wide.extrapolated)
    assert prefill(V2_AT_8192, 5000).tokens_per_s > 0.9 * prefill(V2_AT_8192, 4096).tokens_per_s


def test_a_cpu_has_no_latency_between_devices() -> None:
    small = decode(Serving(SMOL, machine("cpu-2vcpu"), Formats("q4_min", "bfloat16")), 1, 100)
    assert len(small.extrapolated) == 1
    assert small.low == pytest.approx(0.35 * small.tokens_per_s)
