"""What a price is computed from: what a machine does, what it costs, and who says so."""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Literal

from tapwater.cost.figure import Rent
from tapwater.cost.money import check_decimal
from tapwater.cost.plausible import check_origin
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Rates:
    """Tokens per second of one machine, all of it busy with nothing else; what the machine's hour is divided by."""

    prefill_tokens_per_s: Decimal
    cached_tokens_per_s: Decimal
    decode_tokens_per_s: Decimal

    def __post_init__(self) -> None:
        for name in ("prefill_tokens_per_s", "cached_tokens_per_s", "decode_tokens_per_s"):
            check_decimal(name, getattr(self, name), "above 0", "1000000000")
        if self.cached_tokens_per_s < self.prefill_tokens_per_s:
            raise ConfigError(
                f"a cache hit would be dearer than a miss: cached_tokens_per_s {self.cached_tokens_per_s} is below "
                f"prefill_tokens_per_s {self.prefill_tokens_per_s}"
            )


@dataclass(frozen=True)
class Basis:
    """Whether rates were measured or predicted, and from what."""

    kind: Literal["measured", "predicted"]
    text: str

    def __post_init__(self) -> None:
        check_text("text", self.text)


@dataclass(frozen=True)
class Energy:
    """Electricity paid for besides the rent: mean power of the whole machine and the price of a kilowatt-hour."""

    power_w: Decimal
    usd_per_kwh: Decimal
    source: str
    date: str

    def __post_init__(self) -> None:
        check_decimal("power_w", self.power_w, "above 0", "1000000")
        check_decimal("usd_per_kwh", self.usd_per_kwh, "0 or more", "10")
        check_origin(self.source, self.date)


@dataclass(frozen=True)
class Exchange:
    """Yuan for one dollar."""

    cny_per_usd: Decimal
    source: str
    date: str

    def __post_init__(self) -> None:
        check_decimal("cny_per_usd", self.cny_per_usd, "above 0", "1000")
        check_origin(self.source, self.date)


def hourly_cost(rent: Rent, energy: Energy | None = None) -> Decimal:
    """Dollars per hour of a machine: its rent, and its electricity where that is paid for separately."""
    if energy is None:
        return rent.amount
    with localcontext(prec=100):  # more digits than inputs can have: exact, whatever the caller's context
        return rent.amount + energy.power_w / 1000 * energy.usd_per_kwh


def check_text(name: str, value: str) -> None:
    """ConfigError for an empty text: a number nobody can trace is refused."""
    if not value.strip():
        raise ConfigError(f"{name} is empty; say where it comes from")
