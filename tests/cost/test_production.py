"""DeepSeek's published day of V3/R1, recomputed from its inputs."""

import decimal
from dataclasses import replace
from decimal import Decimal

import pytest

from tapwater.cost.compare import Amounts
from tapwater.cost.production import PUBLISHED, account, published_day
from tapwater.errors import ConfigError

ACCOUNT = account(published_day())


def test_the_callers_decimal_context_changes_nothing() -> None:
    with decimal.localcontext(prec=3):
        found = account(published_day())
        assert found == ACCOUNT
        inside = found.profit_usd, found.nodes
    assert inside == (ACCOUNT.profit_usd, ACCOUNT.nodes)


def test_cost_of_the_day() -> None:
    assert ACCOUNT.cost_usd == PUBLISHED.cost_usd == 87_072


def test_revenue_at_r1_prices() -> None:
    assert ACCOUNT.revenue_usd == 562_100  # 562,027 published: tokens are known in whole billions
    assert float(ACCOUNT.revenue_usd) == pytest.approx(float(PUBLISHED.revenue_usd), rel=0.0005)


def test_margin() -> None:
    published = (PUBLISHED.revenue_usd - PUBLISHED.cost_usd) / PUBLISHED.cost_usd
    assert published == pytest.approx(PUBLISHED.margin, abs=Decimal("0.005"))  # 545.47%, printed as 545%
    assert ACCOUNT.margin == pytest.approx(published, abs=Decimal("0.001"))  # 545.56%
    assert round(ACCOUNT.gross_margin, 3) == Decimal("0.845")
    assert ACCOUNT.profit_usd == ACCOUNT.revenue_usd - ACCOUNT.cost_usd


def test_nodes_from_speed() -> None:
    assert round(ACCOUNT.prefill_nodes, 1) == Decimal("95.5")
    assert round(ACCOUNT.decode_nodes, 1) == Decimal("131.4")
    assert round(ACCOUNT.nodes, 1) == Decimal("226.9")
    assert float(ACCOUNT.nodes) == pytest.approx(float(PUBLISHED.nodes), rel=0.01)


def test_share_of_cache_hits() -> None:
    assert ACCOUNT.hit_share == Decimal("0.5625")
    assert ACCOUNT.hit_share == pytest.approx(PUBLISHED.hit_share, abs=Decimal("0.001"))


def test_cost_of_a_million_tokens() -> None:
    assert round(ACCOUNT.output_usd_per_million, 3) == Decimal("0.300")
    assert round(ACCOUNT.input_usd_per_million, 3) == Decimal("0.060")
    assert round(ACCOUNT.blended_usd_per_million, 3) == Decimal("0.112")


def test_at_v3_prices_it_earns_half() -> None:
    assert account(published_day("DeepSeek-V3")).revenue_usd == 280_560


def test_a_day_that_cannot_be_is_named() -> None:
    day = published_day()
    with pytest.raises(ConfigError, match="input_hit_tokens must be 0 to input_tokens"):
        replace(day, input_hit_tokens=day.input_tokens + 1)
    with pytest.raises(ConfigError, match="decode_tokens_per_s must be above 0"):
        replace(day, decode_tokens_per_s=Decimal(0))
    with pytest.raises(ConfigError, match="prices: input_hit is missing"):
        replace(day, prices=Amounts(Decimal(1), Decimal(2)))
    with pytest.raises(ConfigError, match="no dollar price for cache hits"):
        published_day("GPT-4-0613")
