"""What load makes a price true: how many requests a machine must serve at once for a token to cost no more."""

from dataclasses import dataclass
from decimal import Decimal
from math import floor

from tapwater.cost.compare import break_even_tokens_per_s, revenue_per_hour
from tapwater.cost.plan import decimal
from tapwater.cost.throughput import Serving, decode
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """Output at a price on one unit of `hour` dollars or yuan: `needed_tokens_per_s` all the time.

    `batch` requests at once give that, None if no batch that fits does; at the `largest_batch` the unit gives
    `most_tokens_per_s` (`most_low` to `most_high` are expected), has to be busy `utilisation` of its time (above 1:
    never enough), and would pay an hour of up to `highest_hour`.
    """

    hour: Decimal
    per_million: Decimal
    needed_tokens_per_s: float
    batch: int | None
    largest_batch: int
    most_tokens_per_s: float
    most_low: float
    most_high: float
    extrapolated: tuple[str, ...]

    @property
    def utilisation(self) -> float:
        return self.needed_tokens_per_s / self.most_tokens_per_s

    @property
    def highest_hour(self) -> Decimal:
        return revenue_per_hour(decimal(self.most_tokens_per_s), self.per_million)


def load_for_price(serving: Serving, context: float, largest_batch: int, hour: Decimal, per_million: Decimal) -> Target:
    """The smallest batch at which a million output tokens cost `per_million` or less, in the currency of `hour`.

    Prompts are paid for by the price of input. ConfigError for a price or an hour that is not positive.
    """
    for name, amount in (("hour", hour), ("per_million", per_million)):
        if not (amount.is_finite() and Decimal("1e-6") <= amount <= 10**6):
            raise ConfigError(f"{name} must be an amount of money from 0.000001 to a million, got {amount}")
    needed = float(break_even_tokens_per_s(hour, per_million))
    most = decode(serving, largest_batch, context)
    low, high = 0, largest_batch  # the rate rises with the batch
    while high - low > 1:
        middle = floor((low + high) / 2)
        low, high = (low, middle) if decode(serving, middle, context).tokens_per_s >= needed else (middle, high)
    batch = high if decode(serving, high, context).tokens_per_s >= needed else None
    interval = most.tokens_per_s, most.low, most.high
    return Target(hour, per_million, needed, batch, largest_batch, *interval, most.extrapolated)
