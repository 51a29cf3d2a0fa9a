"""A number somebody stated: what it is, who says so, and as of when."""

from dataclasses import dataclass
from decimal import Decimal

from tapwater.cost.plausible import check_origin
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """A number in the unit its field names, from `source` as of `date` (ISO year, month or day)."""

    value: float
    source: str
    date: str

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise ConfigError(f"value must be a positive number, got {self.value}; what is not known is left out")
        check_origin(self.source, self.date)


@dataclass(frozen=True)
class Rent:
    """What an hour of a whole node costs."""

    amount: Decimal
    source: str
    date: str

    def __post_init__(self) -> None:
        if not 0 <= self.amount < 10_000:
            raise ConfigError(
                f"amount {self.amount} is no plausible rent of a node in US dollars an hour; "
                "0 for a machine of your own"
            )
        check_origin(self.source, self.date)
