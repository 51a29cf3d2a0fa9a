"""A price beside public ones, and beside what a machine's hour costs."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from tapwater.config.parse import nearest
from tapwater.cost.inputs import check_text
from tapwater.cost.money import build, own_context
from tapwater.cost.plausible import check_origin
from tapwater.cost.price import CURRENCIES, Currency, PriceSheet
from tapwater.errors import ConfigError

BLEND = (3, 1)  # parts of uncached input and of output, as price comparisons usually mix them
LAUNCH = "DeepSeek-V2 launch"
CLAIM_TOLERANCE = Decimal("0.03")

_SECONDS = 3600
_MILLION = 1_000_000


@dataclass(frozen=True)
class Amounts:
    """Published money per million tokens; no `input_hit` where there is no price for cached input."""

    input_miss: Decimal
    output: Decimal
    input_hit: Decimal | None = None


@dataclass(frozen=True)
class ListPrice:
    """What somebody asked for a model from `date` on (or on it), in one currency or both."""

    provider: str
    model: str
    date: str
    source: str
    tier: str = ""
    usd: Amounts | None = None
    cny: Amounts | None = None

    def __post_init__(self) -> None:
        check_text("source", self.source)
        if self.usd is None and self.cny is None:
            raise ConfigError(f"{self.label}: neither usd nor cny")

    @property
    def label(self) -> str:
        return f"{self.model} {self.tier}".strip()

    def amounts(self, currency: Currency) -> Amounts | None:
        return self.usd if currency == "USD" else self.cny


@dataclass(frozen=True)
class Claim:
    """A sentence of the press: DeepSeek-V2 at launch is so many `times` cheaper than `model`."""

    model: str
    times: Decimal
    source: str
    date: str


@dataclass(frozen=True)
class Comparison:
    """How many times dearer `other` is, in a currency both have: uncached input, output, and three of one to one."""

    other: ListPrice
    currency: Currency
    input: Decimal
    output: Decimal
    blend: Decimal


@dataclass(frozen=True)
class CheckedClaim:
    """A claim beside the ratios of the published prices; it `agrees` if one of them is within 3% of it."""

    claim: Claim
    input: Decimal
    output: Decimal

    @property
    def agrees(self) -> bool:
        limit = CLAIM_TOLERANCE * self.claim.times
        return any(abs(ratio - self.claim.times) <= limit for ratio in (self.input, self.output))


@cache
def list_prices() -> tuple[ListPrice, ...]:
    """All public prices the package knows (prices.toml), in its order."""
    return tuple(build(ListPrice, each, f"prices.toml: price {n}") for n, each in enumerate(_table()["price"], 1))


@cache
def claims() -> tuple[Claim, ...]:
    """What was said of DeepSeek-V2's price (prices.toml)."""
    return tuple(build(Claim, each, f"prices.toml: claim {n}") for n, each in enumerate(_table()["claim"], 1))


def find_price(label: str) -> ListPrice:
    """The public price of "MODEL TIER", or "MODEL TIER@DATE" where one label has several; ConfigError otherwise."""
    found = [each for each in list_prices() if label in (each.label, f"{each.label}@{each.date}")]
    if not found:
        known = [each.label for each in list_prices()]
        raise ConfigError(
            f"no public price of {label!r}{nearest(label, known)}; known: {', '.join(dict.fromkeys(known))}"
        )
    if len(found) > 1:
        raise ConfigError(
            f"{label!r} had several prices; write {' or '.join(f'{label}@{each.date}' for each in found)}"
        )
    return found[0]


def select_prices(provider: str | None = None, since: str | None = None, until: str | None = None) -> list[ListPrice]:
    """Public prices of a provider and of dates from `since` to `until` (ISO year, month or day, both included).

    ConfigError for a provider without prices, naming the nearest, for a date that is none, and a span that ends early.
    """
    for name, value in (("since", since), ("until", until)):
        if value is not None:
            try:
                check_origin(name, value)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
    if since is not None and until is not None and since[: len(until)] > until[: len(since)]:
        raise ConfigError(f"since {since} is after until {until}: no price can be in between")
    providers = {each.provider.lower(): each.provider for each in list_prices()}
    if provider is not None and provider.lower() not in providers:
        raise ConfigError(
            f"no prices of provider {provider!r}{nearest(provider, list(providers.values()))}; "
            f"known: {', '.join(providers.values())}"
        )
    return [
        each
        for each in list_prices()
        if (provider is None or each.provider.lower() == provider.lower())
        and (since is None or each.date[: len(since)] >= since[: len(each.date)])
        and (until is None or each.date[: len(until)] <= until[: len(each.date)])
    ]


def sheet_price(sheet: PriceSheet) -> ListPrice:
    """A sheet's standard prices in the shape of a public one."""
    usd, cny = (Amounts(each.input_miss, each.output, each.input_hit) for each in (sheet.prices(c) for c in CURRENCIES))
    kind, text = sheet.basis.kind, sheet.basis.text
    return ListPrice("", sheet.model, sheet.created.isoformat(), f"{kind}: {text}", f"sheet {sheet.version}", usd, cny)


@own_context()
def compare_prices(ours: ListPrice, others: Sequence[ListPrice]) -> list[Comparison]:
    """Ratios of other prices to ours, in dollars where both have them, else in yuan; ConfigError if in neither."""
    return [_compare(ours, other) for other in others]


def check_claims() -> list[CheckedClaim]:
    """The press about DeepSeek-V2's launch price beside DeepSeek's own price list."""
    ratios = [compare_prices(find_price(LAUNCH), [find_price(claim.model)])[0] for claim in claims()]
    return [CheckedClaim(claim, each.input, each.output) for claim, each in zip(claims(), ratios, strict=True)]


@own_context()
def revenue_per_hour(tokens_per_s: Decimal, per_million: Decimal) -> Decimal:
    """What a machine earns in an hour in which it does nothing else, in the currency of the price."""
    return tokens_per_s * _SECONDS / _MILLION * per_million


@own_context()
def break_even_utilisation(cost_per_hour: Decimal, tokens_per_s: Decimal, per_million: Decimal) -> Decimal:
    """The share of its time a machine must be busy for the price to pay for it; above 1 it never does."""
    return cost_per_hour / revenue_per_hour(tokens_per_s, per_million)


@own_context()
def break_even_tokens_per_s(cost_per_hour: Decimal, per_million: Decimal) -> Decimal:
    """The rate at which a machine that is always busy earns what it costs."""
    return cost_per_hour * _MILLION / _SECONDS / per_million


def _compare(ours: ListPrice, other: ListPrice) -> Comparison:
    for currency in CURRENCIES:
        mine, theirs = ours.amounts(currency), other.amounts(currency)
        if mine is not None and theirs is not None:
            return Comparison(
                other, currency, theirs.input_miss / mine.input_miss, theirs.output / mine.output,
                _blend(theirs) / _blend(mine),
            )  # fmt: skip
    raise ConfigError(f"{ours.label} and {other.label} have no currency in common")


def _blend(amounts: Amounts) -> Decimal:
    return (BLEND[0] * amounts.input_miss + BLEND[1] * amounts.output) / sum(BLEND)


def _table() -> dict:
    return tomllib.loads(Path(__file__).with_name("prices.toml").read_text(encoding="utf-8"))
