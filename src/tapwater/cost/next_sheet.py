"""The next price sheet, from what a reconciled ledger shows."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

from tapwater.cost.figure import Rent
from tapwater.cost.inputs import Basis, Rates
from tapwater.cost.price import STANDARD, PriceSheet, Usage, pico_amount
from tapwater.cost.reconcile import Reconciliation, nominal_s
from tapwater.errors import ConfigError

_DIGITS = 18  # decimals kept where a measured ratio goes on as a number


def propose(result: Reconciliation, sheets: Sequence[PriceSheet], created: date, valid_from: datetime) -> PriceSheet:
    """The newest sheet that was used, with what the ledger shows: now the same requests earn machines' cost and margin.

    Machine time counts at its mean price in dollars per hour, electricity included. How much faster or slower machines
    were than the sheets' rates changes all three rates alike, for a ledger cannot tell them apart, and rates that were
    predicted stay so. The busy share of machine time is the utilisation. Factors of tiers keep their proportion and get
    a mean of 1, by machine time, over this ledger. ConfigError without tokens, and when the sheet would hold for
    requests that were charged by another.
    """
    versions = {version for version, _ in result.usage}
    used_sheets = [sheet for sheet in sheets if sheet.version in versions]
    if not used_sheets:
        raise ConfigError("no request of the ledger was charged by any of these sheets")
    newest = max(used_sheets, key=lambda sheet: sheet.valid_from)
    if valid_from <= result.last_completed_at:
        raise ConfigError(
            f"valid_from {valid_from.isoformat()} is not after {result.last_completed_at.isoformat()}, when the last "
            "request was completed and charged by an older sheet; choose a later one"
        )
    by_tier = {tier: nominal_s(used, newest.rates) for tier, used in _tiers(newest, result).items()}
    nominal = sum(by_tier.values(), Fraction(0))
    if nominal == 0 or result.busy_s == 0:
        raise ConfigError("the ledger holds no tokens or no machine time: no price follows from it")
    scale = nominal / sum((Fraction(newest.tiers[tier]) * seconds for tier, seconds in by_tier.items()), Fraction(0))
    speed = nominal / Fraction(result.busy_s)
    rates = (Fraction(each) * speed for each in vars(newest.rates).values())
    rent = Fraction(result.machine_usd) * 3600 / Fraction(result.machine_s)
    period = f"{result.start.isoformat()} to {result.end.isoformat()}"
    text = f"ledger of {result.requests} requests, {period}; rates in the proportion of sheet {newest.version}"
    return replace(
        newest,
        created=created,
        valid_from=valid_from,
        valid_until=None,
        basis=Basis(newest.basis.kind, text),
        rates=Rates(*(_below(rate) for rate in rates)),
        usd_per_hour=Rent(_above(rent), "machine hours paid for", result.end.date().isoformat()),
        energy=None,
        utilisation=_below(Fraction(result.busy_s) / Fraction(result.machine_s)),
        standard_factor=_above(Fraction(newest.standard_factor) * scale),
        periods=tuple(replace(each, factor=_above(Fraction(each.factor) * scale)) for each in newest.periods),
    )


def revenue_at(sheet: PriceSheet, result: Reconciliation) -> Decimal:
    """Dollars the reconciled requests would have earned by `sheet`, each in the tier it had (standard if unknown)."""
    total = 0
    for tier, used in _tiers(sheet, result).items():
        price = sheet.pico("USD", tier)
        total += used.prompt_cache_hit_tokens * price.input_hit + used.prompt_cache_miss_tokens * price.input_miss
        total += used.completion_tokens * price.output
    return pico_amount(total)


def _tiers(sheet: PriceSheet, result: Reconciliation) -> dict[str, Usage]:
    """Usage by tiers of `sheet`; what was charged in a tier it does not have is standard."""
    found: dict[str, Usage] = {}
    for (_, tier), used in result.usage.items():
        own = tier if tier in sheet.tiers else STANDARD
        found[own] = found[own] + used if own in found else used
    return found


def _below(value: Fraction) -> Decimal:
    """To eighteen decimals, down: rates and shares rounded so never put a price below its cost."""
    return Decimal(f"{floor(value * 10**_DIGITS)}E-{_DIGITS}")


def _above(value: Fraction) -> Decimal:
    """To eighteen decimals, up: so are rents and factors."""
    return Decimal(f"{ceil(value * 10**_DIGITS)}E-{_DIGITS}")
