"""What must hold of any load on any unit, whatever its numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwater.config import preset
from tapwater.cost.candidates import chunk_tokens
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import machine
from tapwater.cost.layout import Layout
from tapwater.cost.load import Traffic, Unit, settle
from tapwater.cost.throughput import Serving, decode, prefill
from tapwater.errors import ConfigError

H800 = machine("h800")


def unit(model: str, prompt: int, output: int, hits: float = 0.0) -> Unit:
    formats, layout = Formats("fp8", "bfloat16"), Layout(dp=8, ep=8)
    if model == "deepseek-67b":
        layout = Layout(tp=8)
    serving = Serving(preset(model), H800, formats, layout, chunk_tokens(H800))
    return Unit(serving, Traffic(prompt, output, hits))


UNITS = st.builds(
    unit,
    st.sampled_from(["deepseek-v2", "deepseek-v2-lite", "deepseek-67b"]),
    st.integers(1, 3000),
    st.integers(1, 1000),
    st.floats(0, 0.95),
)
SHARES = st.floats(0.02, 0.98)


@settings(max_examples=60, deadline=None)
@given(UNITS, SHARES, SHARES, st.floats(2, 4096))
def test_more_load_is_not_less_waiting(served: Unit, one: float, other: float, batch: float) -> None:
    most = served.capacity(batch)
    idler, busier = (served.at_load(share * most, batch) for share in sorted((one, other)))
    assert idler.ttft_s <= busier.ttft_s * (1 + 1e-5)
    assert idler.tpot_s <= busier.tpot_s * (1 + 1e-5)
    assert idler.batch <= busier.batch * (1 + 1e-5)
    assert busier.batch <= batch * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(UNITS, st.floats(1, 4096), st.floats(1, 8), st.integers(1, 4096))
def test_a_bigger_batch_is_not_less_throughput(served: Unit, batch: float, times: float, context: int) -> None:
    less, more = (decode(served.serving, each, context) for each in (batch, batch * times))
    assert less.tokens_per_s <= more.tokens_per_s * (1 + 1e-9)
    assert less.step_s <= more.step_s * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(UNITS, SHARES)
def test_all_devices_time_is_prompts_and_answers(served: Unit, share: float) -> None:
    """At the batch that forms, prompts and answers together take exactly all the time: nothing idles, nothing is
    counted twice."""
    point = served.at_load(share * served.capacity(512), 512)
    answers_s = served.traffic.output_tokens / point.decode.tokens_per_s
    spent = point.requests_per_s * (served.prompt_s + answers_s)
    if point.batch > 1:
        assert spent == pytest.approx(1, rel=1e-4)
    else:
        assert spent <= 1 + 1e-4


def test_capacity_is_respected() -> None:
    served = unit("deepseek-v2", 1000, 500)
    most = served.capacity(64)
    assert served.at_load(0.999 * most, 64).batch <= 64
    for load in (most, 2 * most, 0.0, -1.0):
        with pytest.raises(ConfigError, match=r"layout dp8 ep8 carries up to [0-9.]+"):
            served.at_load(load, 64)


def test_settle_finds_the_fixed_point() -> None:
    assert settle(lambda batch: 3 + 0.9 * batch, 1000) == pytest.approx(30, rel=1e-5)
    assert settle(lambda batch: 5 * batch**0.5, 1000) == pytest.approx(25, rel=1e-5)
    assert settle(lambda batch: max(4.0, 0.99 * batch + 1), 1000) == pytest.approx(100, rel=1e-4)
    assert settle(lambda batch: 0.2, 1000) == 1


def test_a_lone_short_prompt_does_not_wait_for_a_chunk_to_fill() -> None:
    """Only those are computed together that arrive while others are."""
    unit = Unit(
        Serving(preset("deepseek-v2"), machine("h800"), Formats("fp8", "6bit"), Layout(dp=8, ep=8), 8192),
        Traffic(20, 100),
    )
    light = unit.at_load(0.001, 1000)
    alone = prefill(unit.serving, 20, prompts=1).step_s
    assert light.ttft_s == pytest.approx(alone, rel=0.01)  # and hardly ever does anybody generate beside it
    assert light.ttft_s < 0.1 * unit.started.step_s
    heavy = unit.at_load(0.9 * unit.capacity(1000), 1000)
    assert heavy.ttft_s > 2 * light.ttft_s


def test_prompts_wait_as_in_a_queue_with_fixed_service() -> None:
    """M/D/1: half the service time for each share of time that is taken, over the share that is free."""
    unit = Unit(
        Serving(preset("smollm2-135m"), machine("h800"), Formats("bf16", "bfloat16"), Layout(), 8192), Traffic(8000, 1)
    )
    alone = unit.first_token_s(1e-9, 0.0, 0.0)
    assert unit.first_token_s(1e-9, 0.8, 0.0) == pytest.approx(alone * (1 + 0.8 / (2 * 0.2)))
