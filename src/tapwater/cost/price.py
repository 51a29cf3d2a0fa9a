"""What a token costs, measured, and the price that follows from it: a little above cost.

Nobody types a price in. A `PriceSheet` holds what was measured and paid for; costs and prices are computed from it, in
exact fractions, and a price is rounded once: up to a whole pico-unit a token. Charging is integer arithmetic.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Any, Literal

from tapwater.cost.figure import Rent
from tapwater.cost.inputs import Basis, Energy, Exchange, Rates, check_text, hourly_cost
from tapwater.cost.money import check_decimal, check_zone, dump
from tapwater.cost.period import Period, check_periods
from tapwater.errors import ConfigError

Currency = Literal["USD", "CNY"]

CURRENCIES: tuple[Currency, ...] = ("USD", "CNY")
STANDARD = "standard"  # the tier outside all periods
PICO = 10**12
FORMAT = 1  # of a sheet's content: raised when the same inputs are written differently, or mean something else
MAX_MARGIN = "1"  # twice the cost is not a little above it


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, in the names of DeepSeek's API; prompt tokens are hits plus misses."""

    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    completion_tokens: int

    def __post_init__(self) -> None:
        for name in ("prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "completion_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"{name} must be a whole number, 0 or more; got {value!r}")

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_cache_hit_tokens + other.prompt_cache_hit_tokens,
            self.prompt_cache_miss_tokens + other.prompt_cache_miss_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True)
class PerMillion:
    """Money per million tokens."""

    input_hit: Decimal
    input_miss: Decimal
    output: Decimal


@dataclass(frozen=True)
class PerToken:
    """Pico-units of a currency per token."""

    input_hit: int
    input_miss: int
    output: int


@dataclass(frozen=True)
class Charge:
    """What a request costs in pico-units of a currency, by the tier it was finished in."""

    sheet_version: str
    tier: str
    currency: Currency
    input_hit: int
    input_miss: int
    output: int

    @property
    def total(self) -> int:
        return self.input_hit + self.input_miss + self.output


@dataclass(frozen=True)
class PriceSheet:
    """Prices of one model on one machine from `valid_from` until `valid_until` (not included; None: no end known).

    A machine costs `usd_per_hour` and `energy`, does `rates` while busy, and is busy the share `utilisation` of its
    time: idle hours are paid by those who use the others. `margin` is profit as a share of cost. In `periods` prices
    are multiplied by a factor, outside them by `standard_factor`. ConfigError names the field that cannot be.
    """

    model: str
    machine: str
    created: date
    valid_from: datetime
    basis: Basis
    rates: Rates
    usd_per_hour: Rent
    utilisation: Decimal
    margin: Decimal
    exchange: Exchange
    valid_until: datetime | None = None
    energy: Energy | None = None
    standard_factor: Decimal = Decimal(1)
    periods: tuple[Period, ...] = ()

    def __post_init__(self) -> None:
        check_text("model", self.model)
        check_text("machine", self.machine)
        if hourly_cost(self.usd_per_hour, self.energy) == 0:
            raise ConfigError("usd_per_hour is 0 and so is energy: a machine that costs nothing gives no price")
        check_decimal("utilisation", self.utilisation, "above 0", "1", "; it is a share: 0.4 for 40%")
        check_decimal("margin", self.margin, "0 or more", MAX_MARGIN, "; it is a share of cost: 0.05 for 5%")
        check_zone("valid_from", self.valid_from)
        if self.valid_until is not None:
            check_zone("valid_until", self.valid_until)
            if self.valid_until <= self.valid_from:
                raise ConfigError(f"valid_until {self.valid_until} is not after valid_from {self.valid_from}")
        check_decimal("standard_factor", self.standard_factor, "above 0", "10")
        check_periods(self.periods, STANDARD)

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """The sheet as plain JSON values, costs beside prices; all of it but the version.

        What is None is left out: an optional field that is added later leaves the versions of older sheets as they are.
        """
        return {
            "format": FORMAT,
            **_said(dump(self)),
            "costs_per_million": {each.lower(): dump(self.costs(each)) for each in CURRENCIES},
            "prices_per_million": {
                tier: {each.lower(): dump(self.prices(each, tier)) for each in CURRENCIES} for tier in self.tiers
            },
        }

    @cached_property
    def version(self) -> str:
        """Twelve hexadecimal digits of the content's SHA-256: the same inputs give the same version."""
        import hashlib  # loads OpenSSL, which only a version needs

        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def tiers(self) -> Mapping[str, Decimal]:
        """Factor of each tier by name."""
        return {STANDARD: self.standard_factor} | {period.name: period.factor for period in self.periods}

    def tier_at(self, completed_at: datetime) -> str:
        """The tier of a request finished at that moment; ConfigError outside the sheet's validity or without zone."""
        check_zone("completed_at", completed_at)
        if completed_at < self.valid_from or (self.valid_until is not None and completed_at >= self.valid_until):
            until = f" until {self.valid_until.isoformat()}" if self.valid_until else ""
            raise ConfigError(
                f"{completed_at.isoformat()}: price sheet {self.version} is valid from "
                f"{self.valid_from.isoformat()}{until}"
            )
        return next((period.name for period in self.periods if period.covers(completed_at)), STANDARD)

    def costs(self, currency: Currency = "USD") -> PerMillion:
        """Cost per million tokens, shown to the nearest pico-unit a token; prices follow from the exact fraction."""
        return PerMillion(*(_per_million(round(cost)) for cost in self._exact_costs(currency)))

    def prices(self, currency: Currency = "USD", tier: str = STANDARD) -> PerMillion:
        """Price per million tokens in a tier."""
        each = self.pico(currency, tier)
        return PerMillion(*(_per_million(pico) for pico in (each.input_hit, each.input_miss, each.output)))

    def pico(self, currency: Currency, tier: str) -> PerToken:
        """Price per token in whole pico-units: cost, margin and factor multiplied exactly, then rounded up, once."""
        return self._pico[currency, tier]

    @cached_property
    def _pico(self) -> Mapping[tuple[Currency, str], PerToken]:
        return {
            (currency, tier): PerToken(
                *(ceil(cost * (1 + Fraction(self.margin)) * Fraction(factor)) for cost in self._exact_costs(currency))
            )
            for currency in CURRENCIES
            for tier, factor in self.tiers.items()
        }

    def _exact_costs(self, currency: Currency) -> tuple[Fraction, Fraction, Fraction]:
        """Pico-units per token of hit, miss and output."""
        second = Fraction(hourly_cost(self.usd_per_hour, self.energy)) / 3600 / Fraction(self.utilisation)
        exchange = Fraction(1 if currency == "USD" else self.exchange.cny_per_usd)
        rates = (self.rates.cached_tokens_per_s, self.rates.prefill_tokens_per_s, self.rates.decode_tokens_per_s)
        hit, miss, output = (second * exchange * PICO / Fraction(rate) for rate in rates)
        return hit, miss, output


def charge(sheet: PriceSheet, usage: Usage, completed_at: datetime, currency: Currency = "USD") -> Charge:
    """What `usage` costs when it was finished at `completed_at`: tokens times whole pico-units, nothing rounded.

    DeepSeek's rule: the time of completion decides the tier of the whole request. ConfigError as in `tier_at`.
    """
    tier = sheet.tier_at(completed_at)
    price = sheet.pico(currency, tier)
    return Charge(
        sheet.version,
        tier,
        currency,
        input_hit=usage.prompt_cache_hit_tokens * price.input_hit,
        input_miss=usage.prompt_cache_miss_tokens * price.input_miss,
        output=usage.completion_tokens * price.output,
    )


def pico_amount(pico: int) -> Decimal:
    """Pico-units as units of the currency, exactly."""
    return Decimal(f"{pico}E-12")


def _said(value: Any) -> Any:
    """Tables without what is None, at any depth."""
    if isinstance(value, dict):
        return {name: _said(each) for name, each in value.items() if each is not None}
    return [_said(each) for each in value] if isinstance(value, list) else value


def _per_million(pico_per_token: int) -> Decimal:
    return Decimal(f"{pico_per_token}E-6")
