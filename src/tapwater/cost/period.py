"""Hours of the week with a price of their own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING

from tapwater.config.parse import nearest
from tapwater.cost.money import check_decimal
from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_OF_DAY = 24 * 60


@dataclass(frozen=True)
class Period:
    """From `start` (included) to `end` (not included) on `days`, by the clock of `zone`, prices times `factor`.

    Times are "HH:MM". An `end` not after `start` is on the next day: 16:30 to 00:30 begins on `days`; 00:00 to 00:00 is
    the whole day. Public holidays are days like others. ConfigError for a day, time or zone there is not.
    """

    name: str
    days: tuple[str, ...]
    start: str
    end: str
    zone: str
    factor: Decimal

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("a period needs a name, such as off-peak")
        if not self.days or len(set(self.days)) < len(self.days):
            raise ConfigError(f"period {self.name}: days must be at least one and each once, got {list(self.days)}")
        for day in self.days:
            if day not in DAYS:
                raise ConfigError(f"period {self.name}: no day {day!r}{nearest(day, list(DAYS))}; {' '.join(DAYS)}")
        for time in (self.start, self.end):
            if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", time):
                raise ConfigError(f"period {self.name}: {time!r} is not a time from 00:00 to 23:59")
        try:
            _ = self._clock
        except (KeyError, ValueError, OSError):  # zoneinfo's own error is a KeyError
            raise ConfigError(
                f"period {self.name}: no time zone {self.zone!r}, such as UTC or Asia/Shanghai "
                "(where the system has no zones, `pip install tzdata`)"
            ) from None
        check_decimal(f"period {self.name}: factor", self.factor, "above 0", "10")

    def covers(self, moment: datetime) -> bool:
        """Whether a moment (with zone) lies in the period."""
        local = moment.astimezone(self._clock)
        return local.weekday() * MINUTES_OF_DAY + local.hour * 60 + local.minute in self.minutes

    @cached_property
    def minutes(self) -> frozenset[int]:
        """Minutes of the week, Monday 00:00 being 0."""
        start, end = (int(time[:2]) * 60 + int(time[3:]) for time in (self.start, self.end))
        span = range(start, end if end > start else end + MINUTES_OF_DAY)
        return frozenset(
            (DAYS.index(day) * MINUTES_OF_DAY + minute) % (len(DAYS) * MINUTES_OF_DAY)
            for day in self.days
            for minute in span
        )

    @cached_property
    def _clock(self) -> "ZoneInfo":
        from zoneinfo import ZoneInfo  # most sheets have no periods

        return ZoneInfo(self.zone)


def check_periods(periods: Sequence[Period], reserved: str) -> None:
    """ConfigError for periods of one name or one hour, or in several zones, where overlap depends on the season."""
    names = [reserved, *(period.name for period in periods)]
    for index, period in enumerate(periods):
        if period.name in names[: index + 1]:
            raise ConfigError(f"periods: the name {period.name!r} is taken; give each its own")
        for other in periods[:index]:
            if other.zone != period.zone:
                raise ConfigError(f"periods {other.name} and {period.name} must be in one time zone")
            if other.minutes & period.minutes:
                raise ConfigError(f"periods {other.name} and {period.name} overlap: which price holds?")
