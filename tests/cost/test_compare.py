"""Published price ratios, the claim that contradicts them, and where a machine breaks even."""

from decimal import Decimal

import pytest

from sheets import v2_sheet
from tapwater.cost.compare import (
    LAUNCH,
    break_even_tokens_per_s,
    break_even_utilisation,
    check_claims,
    compare_prices,
    find_price,
    list_prices,
    revenue_per_hour,
    select_prices,
    sheet_price,
)
from tapwater.errors import ConfigError

NODE_HOUR = Decimal(16)  # 8 GPUs at $2
RATE = Decimal(50_000)


def test_gpt_4_turbo_was_seventy_times_dearer_than_v2() -> None:
    (ratio,) = compare_prices(find_price(LAUNCH), [find_price("GPT-4-Turbo-1106")])
    assert round(ratio.input, 1) == Decimal("71.4")
    assert float(ratio.input) == pytest.approx(70, rel=0.03)
    assert round(ratio.output) == 107


def test_llama_3_70b_was_27_times_dearer_not_seven() -> None:
    (ratio,) = compare_prices(find_price(LAUNCH), [find_price("LLaMA 3 70B")])
    assert (ratio.input, ratio.output) == (27, Decimal("40.5"))
    assert ratio.blend == (3 * Decimal("3.78") + Decimal("11.34")) / (3 * Decimal("0.14") + Decimal("0.28"))
    verdicts = {each.claim.model: each.agrees for each in check_claims()}
    assert verdicts == {"GPT-4-Turbo-1106": True, "LLaMA 3 70B": False}


def test_a_v2_node_against_its_list_price() -> None:
    launch = find_price(LAUNCH).usd
    assert launch is not None
    assert revenue_per_hour(RATE, launch.output) == Decimal("50.4")
    assert revenue_per_hour(2 * RATE, launch.input_miss) == Decimal("50.4")
    assert round(break_even_utilisation(NODE_HOUR, RATE, launch.output), 3) == Decimal("0.317")
    assert round(break_even_tokens_per_s(NODE_HOUR, 1 / Decimal("7.2"))) == 32_000  # one yuan a million
    assert break_even_utilisation(NODE_HOUR, Decimal(10_000), launch.output) > 1


def test_a_sheet_stands_in_the_list_like_a_public_price() -> None:
    ours = sheet_price(v2_sheet(margin=Decimal("0.1")))
    assert ours.cny is not None and ours.cny.output == Decimal("0.704")
    (ratio,) = compare_prices(ours, [find_price(LAUNCH)])
    assert ratio.currency == "USD"
    assert float(ratio.output) == pytest.approx(0.28 / (16 / 180 * 1.1), rel=1e-4)


def test_the_list_is_complete_and_sourced() -> None:
    assert len(list_prices()) == 32
    labels = [f"{each.label}@{each.date}" for each in list_prices()]
    assert len(set(labels)) == len(labels)
    for each in list_prices():
        assert each.source and each.date
        for amounts in (each.usd, each.cny):
            if amounts is not None:
                assert amounts.input_hit is None or amounts.input_hit <= amounts.input_miss
                assert 0 < amounts.input_miss <= amounts.output
    recalled = {each.label for each in list_prices() if "recalled, not verified" in each.source}
    assert recalled == {"LLaMA 3 70B", "DeepSeek-V3.1", "DeepSeek-V3.2-Exp"}


def test_off_peak_prices_are_the_factors_published() -> None:
    night, day, r1 = (find_price(label).cny for label in ("DeepSeek-V3 off-peak", "DeepSeek-V3", "DeepSeek-R1"))
    assert night is not None and day is not None and r1 is not None
    for name in ("input_hit", "input_miss", "output"):
        assert getattr(night, name) == getattr(day, name) / 2 == getattr(r1, name) / 4
    quiet, busy = (find_price(f"DeepSeek-V4.1-Flash {tier}").usd for tier in ("off-peak", "peak"))
    assert quiet is not None and busy is not None
    assert (busy.input_miss, busy.output) == (2 * quiet.input_miss, 2 * quiet.output)


def test_selection_by_provider_and_date() -> None:
    assert {each.model for each in select_prices("anthropic")} == {"Claude 3 Opus", "Claude 3 Sonnet", "Claude 3 Haiku"}
    assert len(select_prices(until="2024-05")) == 16  # the README's figure
    assert [each.label for each in select_prices("DeepSeek", "2025-01", "2025-01-31")] == ["DeepSeek-R1"]
    assert {each.date[:4] for each in select_prices(since="2026")} == {"2026"}
    with pytest.raises(ConfigError, match="did you mean 'OpenAI'"):
        select_prices("OpenIA")
    for wrong in ("May", "2024-99", "2023-02-29"):
        with pytest.raises(ConfigError, match=f"since: date '{wrong}'"):
            select_prices(since=wrong)
    with pytest.raises(ConfigError, match="since 2025 is after until 2024"):
        select_prices(since="2025", until="2024")
    assert select_prices(since="2024-05-06", until="2024")  # from that day to the end of that year


def test_a_price_nobody_knows_or_that_had_several_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'DeepSeek-V3'"):
        find_price("DeepSek-V3")
    with pytest.raises(ConfigError, match="had several prices; write DeepSeek-V4-Pro off-peak@2026-08-16 or"):
        find_price("DeepSeek-V4-Pro off-peak")
    assert find_price("DeepSeek-V4-Pro off-peak@2026-08-16").cny is None
