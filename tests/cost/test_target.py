"""What load makes a price true."""

from decimal import Decimal

import pytest

from kernel_rates import measured
from tapwater.config import preset
from tapwater.cost.formats import Formats
from tapwater.cost.target import load_for_price
from tapwater.cost.throughput import Serving, decode
from tapwater.errors import ConfigError

LITE = Serving(preset("deepseek-v2-lite"), measured(), Formats("q4", "bfloat16"))


def test_the_smallest_batch_that_pays_for_the_hour() -> None:
    found = load_for_price(LITE, 500, 64, Decimal("0.1"), Decimal("1"))
    assert found.needed_tokens_per_s == pytest.approx(0.1 * 1e6 / 3600)
    assert found.batch is not None and found.batch > 1
    assert decode(LITE, found.batch, 500).tokens_per_s >= found.needed_tokens_per_s
    assert decode(LITE, found.batch - 1, 500).tokens_per_s < found.needed_tokens_per_s
    assert 0 < found.utilisation < 1
    assert found.highest_hour > Decimal("0.1")


def test_a_price_that_no_load_makes_true_says_what_the_hour_may_cost() -> None:
    found = load_for_price(LITE, 500, 64, Decimal("5"), Decimal("1"))
    assert found.batch is None
    assert found.utilisation > 1
    exact = Decimal("1") * Decimal(f"{found.most_tokens_per_s:.12g}") * 3600 / 1_000_000
    assert found.highest_hour == exact  # of twelve digits, as all rates that meet money
    affordable = load_for_price(LITE, 500, 64, found.highest_hour * Decimal("0.999"), Decimal("1"))
    assert affordable.batch is not None and affordable.batch >= 63


def test_no_price_and_no_rent_are_refused() -> None:
    for hour, price in (("0", "1"), ("1", "0"), ("1", "-1"), ("NaN", "1"), ("Infinity", "1")):
        with pytest.raises(ConfigError, match="must be an amount of money"):
            load_for_price(LITE, 500, 64, Decimal(hour), Decimal(price))
