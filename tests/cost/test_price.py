"""Prices follow exactly from what was measured; charges are exact and add up; sheets survive a file unchanged."""

import decimal
import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheets import AFTERNOON, MORNING, NIGHT, V2_NODE, v2_sheet
from tapwater.cost.hardware import Rent
from tapwater.cost.inputs import Basis, Energy, Exchange, Rates, hourly_cost
from tapwater.cost.period import Period
from tapwater.cost.price import STANDARD, PriceSheet, Usage, charge, pico_amount
from tapwater.cost.sheet_file import read_sheet, sheet_json, write_sheet
from tapwater.errors import ConfigError

NOON = datetime(2026, 11, 18, 12, tzinfo=UTC)  # a Wednesday
counts = st.integers(0, 10**9)
usages = st.builds(Usage, counts, counts, counts)


def amounts(low: str, high: str) -> st.SearchStrategy[Decimal]:
    return st.decimals(low, high, places=6, allow_nan=False, allow_infinity=False)


@st.composite
def price_sheets(draw: st.DrawFn) -> Any:
    prefill = draw(amounts("0.01", "1000000"))
    cached = prefill + draw(amounts("0", "1000000"))
    energy = st.builds(Energy, amounts("0.1", "10000"), amounts("0", "1"), st.just("meter"), st.just("2026"))
    return v2_sheet(
        rates=Rates(prefill, cached, draw(amounts("0.01", "1000000"))),
        usd_per_hour=Rent(draw(amounts("0.01", "100")), "a test", "2026"),
        energy=draw(st.none() | energy),
        utilisation=draw(amounts("0.01", "1")),
        margin=draw(amounts("0", "1")),
        periods=draw(st.sampled_from([(), (NIGHT,), (MORNING, AFTERNOON)])),
        valid_until=draw(st.none() | st.just(datetime(2030, 1, 1, 8, tzinfo=timezone(timedelta(hours=8))))),
    )


def test_cost_price_of_v2_at_two_dollars_a_gpu_hour() -> None:
    dollars, yuan = V2_NODE.costs("USD"), V2_NODE.costs("CNY")
    assert dollars.output == Decimal("0.088889")  # $0.0889
    assert yuan.output == Decimal("0.64")
    assert dollars.input_miss == Decimal("0.044444")
    assert yuan.input_miss == Decimal("0.32")
    faster = v2_sheet(rates=Rates(Decimal(100_000), Decimal(100_000), Decimal(55_400)))
    assert faster.costs().output == Decimal("0.080225")  # $0.0802
    half_idle = v2_sheet(utilisation=Decimal("0.5"))
    assert half_idle.costs("CNY").output == Decimal("1.28")


def test_fourteen_cents_a_million_is_140000_pico_dollars_a_token() -> None:
    rent = Rent(Decimal("50.4"), "a test", "2026")  # 100K tokens/s at $0.14
    sheet = v2_sheet(usd_per_hour=rent)
    assert sheet.pico("USD", STANDARD).input_miss == 140_000
    charged = charge(sheet, Usage(0, 1_000_000, 0), NOON)
    assert pico_amount(charged.total) == Decimal("0.14")


@given(price_sheets(), usages, usages)
def test_charges_are_exact_and_add_up(sheet: Any, first: Usage, second: Usage) -> None:
    each = [charge(sheet, usage, NOON) for usage in (first, second, first + second)]
    assert each[0].total + each[1].total == each[2].total
    price = sheet.prices("USD", each[0].tier)
    exact = (
        first.prompt_cache_hit_tokens * Fraction(price.input_hit)
        + first.prompt_cache_miss_tokens * Fraction(price.input_miss)
        + first.completion_tokens * Fraction(price.output)
    ) / 1_000_000
    assert Fraction(pico_amount(each[0].total)) == exact


@given(price_sheets(), st.sampled_from(["USD", "CNY"]))
def test_a_price_is_cost_and_margin_rounded_up_once(sheet: Any, currency: Any) -> None:
    hour = Fraction(hourly_cost(sheet.usd_per_hour, sheet.energy))
    hour *= 1 if currency == "USD" else Fraction(sheet.exchange.cny_per_usd)
    for tier, factor in sheet.tiers.items():
        wanted = hour / 3600 / Fraction(sheet.utilisation) * (1 + Fraction(sheet.margin)) * Fraction(factor) * 10**12
        price = sheet.pico(currency, tier)
        assert 0 <= price.output - wanted / Fraction(sheet.rates.decode_tokens_per_s) < 1
        assert 0 <= price.input_miss - wanted / Fraction(sheet.rates.prefill_tokens_per_s) < 1
        assert 0 <= price.input_hit - wanted / Fraction(sheet.rates.cached_tokens_per_s) < 1
        assert price.input_hit <= price.input_miss


def test_the_callers_decimal_context_changes_nothing() -> None:
    energy = Energy(Decimal("5600.123456"), Decimal("0.123456789"), "meter", "2026")
    expected = sheet_json(v2_sheet(energy=energy, margin=Decimal("0.05")))
    with decimal.localcontext(prec=3):
        assert sheet_json(v2_sheet(energy=energy, margin=Decimal("0.05"))) == expected


def test_energy_is_paid_besides_rent() -> None:
    energy = Energy(Decimal(5600), Decimal("0.10"), "meter", "2026")
    assert hourly_cost(V2_NODE.usd_per_hour, energy) == Decimal("16.56")
    assert hourly_cost(V2_NODE.usd_per_hour) == 16


@pytest.mark.parametrize(
    ("moment", "tier"),
    [
        ("2026-11-18T16:29:59.999999+00:00", "standard"),
        ("2026-11-18T16:30:00+00:00", "off-peak"),
        ("2026-11-19T00:29:59+00:00", "off-peak"),
        ("2026-11-19T00:30:00+00:00", "standard"),
        ("2026-11-19T00:30:00+08:00", "off-peak"),  # 16:30 UTC the day before
        ("2026-11-19T08:30:00+08:00", "standard"),  # 00:30 UTC
        ("2026-11-18T11:30:00-05:00", "off-peak"),
    ],
)
def test_the_completion_decides_the_tier_across_midnight(moment: str, tier: str) -> None:
    sheet = v2_sheet(periods=(NIGHT,))
    charged = charge(sheet, Usage(1000, 1000, 1000), datetime.fromisoformat(moment))
    assert charged.tier == tier
    full = charge(V2_NODE, Usage(1000, 1000, 1000), datetime.fromisoformat(moment)).total
    assert charged.total == pytest.approx(full * (0.5 if tier == "off-peak" else 1), rel=1e-3)


@pytest.mark.parametrize(
    ("moment", "tier"),
    [
        ("2026-11-20T01:00:00+00:00", "morning"),  # Friday, 9:00 in Beijing
        ("2026-11-20T03:59:59+00:00", "morning"),
        ("2026-11-20T04:00:00+00:00", "standard"),
        ("2026-11-20T06:00:00+00:00", "afternoon"),
        ("2026-11-20T10:00:00+00:00", "standard"),
        ("2026-11-21T01:00:00+00:00", "standard"),  # Saturday
        ("2026-11-22T23:30:00+00:00", "standard"),  # Monday in Beijing, not yet nine
        ("2026-11-22T20:00:00-05:00", "morning"),  # Sunday evening in America
    ],
)
def test_a_period_follows_the_clock_and_the_week_of_its_zone(moment: str, tier: str) -> None:
    assert v2_sheet(periods=(MORNING, AFTERNOON)).tier_at(datetime.fromisoformat(moment)) == tier


def test_a_period_ends_the_week_on_monday() -> None:
    sunday = Period("late", ("sun",), "22:00", "02:00", "UTC", Decimal("0.5"))
    sheet = v2_sheet(periods=(sunday,))
    assert sheet.tier_at(datetime(2026, 11, 23, 1, 59, tzinfo=UTC)) == "late"
    assert sheet.tier_at(datetime(2026, 11, 23, 2, tzinfo=UTC)) == "standard"


def test_a_period_from_midnight_to_midnight_is_the_whole_day() -> None:
    sheet = v2_sheet(periods=(Period("sunday", ("sun",), "00:00", "00:00", "UTC", Decimal("0.5")),))
    tiers = [
        sheet.tier_at(datetime(2026, 11, day, hour, minute, tzinfo=UTC))
        for day, hour, minute in ((21, 23, 59), (22, 0, 0), (22, 23, 59), (23, 0, 0))
    ]
    assert tiers == ["standard", "sunday", "sunday", "standard"]


def test_a_sheet_holds_from_its_first_moment_to_before_its_last() -> None:
    end = datetime(2026, 12, 1, tzinfo=UTC)
    sheet = v2_sheet(valid_until=end)
    assert charge(sheet, Usage(1, 0, 0), V2_NODE.valid_from).total
    assert charge(sheet, Usage(1, 0, 0), end - timedelta(microseconds=1)).total
    for moment in (V2_NODE.valid_from - timedelta(microseconds=1), end):
        with pytest.raises(ConfigError, match="is valid from"):
            charge(sheet, Usage(1, 0, 0), moment)
    with pytest.raises(ConfigError, match="no time zone"):
        charge(sheet, Usage(1, 0, 0), datetime(2026, 11, 20))


@given(price_sheets())
def test_a_sheet_comes_back_from_its_file_with_the_same_bytes(tmp_path_factory: Any, sheet: Any) -> None:
    path = tmp_path_factory.mktemp("sheet") / "sheet.json"
    write_sheet(sheet, path)
    assert read_sheet(path) == sheet
    assert sheet_json(read_sheet(path)).encode() == path.read_bytes()


def test_the_version_is_the_content() -> None:
    assert v2_sheet(margin=Decimal("0.10")).version == v2_sheet(margin=Decimal("0.1")).version
    elsewhere = V2_NODE.valid_from.astimezone(timezone(timedelta(hours=8)))
    assert v2_sheet(valid_from=elsewhere).version == V2_NODE.version
    others = [v2_sheet(margin=Decimal("0.11")), v2_sheet(periods=(NIGHT,)), v2_sheet(machine="another")]
    assert len({V2_NODE.version, *(sheet.version for sheet in others)}) == 4


@dataclass(frozen=True)
class LaterSheet(PriceSheet):
    discount: str | None = None


def test_an_optional_field_added_later_keeps_the_versions_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sheet.json"
    write_sheet(V2_NODE, path)
    assert json.loads(path.read_text())["format"] == 1
    monkeypatch.setattr("tapwater.cost.sheet_file.PriceSheet", LaterSheet)
    later = read_sheet(path)
    assert isinstance(later, LaterSheet)
    assert later.version == V2_NODE.version
    assert sheet_json(later).encode() == path.read_bytes()
    known = {field.name: getattr(later, field.name) for field in fields(PriceSheet)}
    assert LaterSheet(**known, discount="half").version != V2_NODE.version


def test_the_format_is_part_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapwater.cost.price.FORMAT", 2)
    assert v2_sheet().version != V2_NODE.version


def test_dates_of_rates_of_exchange_and_of_electricity_are_dates() -> None:
    with pytest.raises(ConfigError, match="date 'never' is not an ISO date"):
        Exchange(Decimal(7), "a test", "never")
    with pytest.raises(ConfigError, match="date 'soon' is not an ISO date"):
        Energy(Decimal(700), Decimal("0.1"), "a test", "soon")


def test_a_sheet_is_never_overwritten_by_another(tmp_path: Path) -> None:
    path = tmp_path / "sheet.json"
    write_sheet(V2_NODE, path)
    write_sheet(V2_NODE, path)
    with pytest.raises(ConfigError, match="another sheet"):
        write_sheet(v2_sheet(margin=Decimal("0.1")), path)
    assert read_sheet(path) == V2_NODE


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["margin"], 0.14, 'margin: write "0.14", not 0.14'),
        (["margin"], 1, 'margin: write "1", not 1'),
        (["margin"], "1e-1", "'1e-1' is not a decimal number"),
        (["margin"], "-0.1", "margin must be 0 or more, at most 1; got -0.1"),
        (["margin"], "5", "it is a share of cost: 0.05 for 5%"),
        (["marge"], "0.1", "unknown field 'marge'; did you mean 'margin'?"),
        (["rates", "decode"], "1", "rates: unknown field 'decode'"),
        (["rates", "decode_tokens_per_s"], "0", "rates: decode_tokens_per_s must be above 0"),
        (["rates", "cached_tokens_per_s"], "99999", "a cache hit would be dearer than a miss"),
        (["utilisation"], "40", "it is a share: 0.4 for 40%"),
        (["usd_per_hour", "amount"], "-16", "usd_per_hour: amount -16 is no plausible rent"),
        (["usd_per_hour", "amount"], "0", "a machine that costs nothing gives no price"),
        (["usd_per_hour", "source"], " ", "usd_per_hour: source is empty"),
        (["exchange", "cny_per_usd"], 7.2, 'exchange: cny_per_usd: write "7.2", not 7.2'),
        (["basis", "kind"], "guessed", "'guessed' is not one of 'measured', 'predicted'"),
        (["created"], "06.05.2024", "is not a date such as"),
        (["valid_from"], "2024-05-06T00:00:00", "has no time zone"),
        (["valid_until"], "2024-05-05T00:00:00Z", "is not after valid_from"),
        (["periods", 0, "zone"], "Mars/Olympus", "no time zone 'Mars/Olympus'"),
        (["periods", 0, "days"], ["mon", "tues"], "no day 'tues'; did you mean 'tue'?"),
        (["periods", 0, "end"], "24:00", "'24:00' is not a time from 00:00 to 23:59"),
        (["periods", 0, "factor"], "0", "factor must be above 0"),
        (["periods", 0, "name"], "standard", "the name 'standard' is taken"),
        (["prices_per_million", "standard", "usd", "output"], "0.2", "prices are computed, not typed in"),
        (["prices_per_million", "off-peak", "cny", "input_hit"], "0.001", "prices_per_million.off-peak.cny.input_hit"),
        (["costs_per_million", "usd", "output"], "0.01", "costs_per_million.usd.output"),
        (["version"], "000000000000", "version is"),
        (["format"], 2, "format 2 is unknown; this version of tapwater reads format 1"),
        (["format"], True, "format True is unknown"),
        (["usd_per_hour", "amount"], "17", "follows from the sheet's inputs"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path: Path, path: list[Any], value: Any, words: str) -> None:
    data = json.loads(sheet_json(v2_sheet(periods=(NIGHT,))))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "sheet.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        read_sheet(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "a JSON object"), ("{}", "missing field"), ('{"a": NaN}', "NaN is not a number")],
)
def test_a_file_that_is_no_sheet_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "sheet.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_sheet(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sheet(tmp_path / "none.json")


def test_a_key_written_twice_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sheet.json"
    file.write_text(sheet_json(V2_NODE).replace('"margin": "0"', '"margin": "0.1", "margin": "0"'))
    with pytest.raises(ConfigError, match="'margin' is there twice"):
        read_sheet(file)


def test_overlapping_periods_and_two_zones_are_refused() -> None:
    with pytest.raises(ConfigError, match="off-peak and late overlap"):
        v2_sheet(periods=(NIGHT, Period("late", ("thu",), "00:29", "01:00", "UTC", Decimal(1))))
    v2_sheet(periods=(NIGHT, Period("late", ("thu",), "00:30", "01:00", "UTC", Decimal(1))))
    with pytest.raises(ConfigError, match="one time zone"):
        v2_sheet(periods=(NIGHT, MORNING))


def test_floats_and_nonsense_are_refused_in_python_too() -> None:
    with pytest.raises(ConfigError, match="expected a Decimal, got float"):
        v2_sheet(margin=0.1)
    with pytest.raises(ConfigError, match="at most"):
        v2_sheet(margin=Decimal("NaN"))
    with pytest.raises(ConfigError, match="cny_per_usd"):
        Exchange(Decimal("Infinity"), "a test", "2026")
    with pytest.raises(ConfigError, match="text is empty"):
        Basis("measured", "")
    for wrong in (-1, 1.0, True):
        with pytest.raises(ConfigError, match="completion_tokens must be a whole number"):
            Usage(0, 0, wrong)  # pyrefly: ignore[bad-argument-type]
