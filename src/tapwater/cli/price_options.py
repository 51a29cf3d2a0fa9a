"""Options of `tapwater price` as the values they spell."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tapwater.cost.inputs import Energy
from tapwater.cost.money import date_of, decimal_of, moment_of
from tapwater.cost.period import DAYS, Period
from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from tapwater.cost.ledger import MachineHours


def creation_date(created: str | None) -> date:
    return datetime.now(UTC).date() if created is None else date_of(created, "--created")


def start_of(valid_from: str | None, day: date) -> datetime:
    if valid_from is None:
        return datetime(day.year, day.month, day.day, tzinfo=UTC)
    return moment_of(valid_from, "--valid-from")


def energy_of(power_w: str | None, usd_per_kwh: str | None, source: str | None, day: date) -> Energy | None:
    if power_w is None and usd_per_kwh is None and source is None:
        return None
    if power_w is None or usd_per_kwh is None or source is None:
        raise ConfigError("electricity needs all of --power-w, --usd-per-kwh and --energy-source")
    amounts = decimal_of(power_w, "--power-w"), decimal_of(usd_per_kwh, "--usd-per-kwh")
    return Energy(*amounts, source, day.isoformat())


def period_of(text: str) -> Period:
    """Read "off-peak mon-fri,sun 16:30-00:30 UTC 0.5"."""
    parts = text.split()
    if len(parts) != 5 or parts[2].count("-") != 1:
        raise ConfigError(
            f'--period {text!r}: write name, days, hours, zone, factor: "night mon-sun 16:30-00:30 UTC 0.5"'
        )
    name, days, hours, zone, factor = parts
    start, end = hours.split("-")
    return Period(name, _days(days), start, end, zone, decimal_of(factor, f"--period {name}: factor"))


def _days(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not dash:
            found.append(part)
        elif first in DAYS and last in DAYS:
            begin = DAYS.index(first)
            found += [DAYS[(begin + n) % 7] for n in range((DAYS.index(last) - begin) % 7 + 1)]
        else:
            raise ConfigError(f"--period: {part!r} is not a range of days such as mon-fri")
    return tuple(found)


def hours_of(
    path: Path | None, machine: str | None, since: str | None, until: str | None, usd_per_hour: str | None
) -> "list[MachineHours]":
    from tapwater.cost.ledger import MachineHours, read_hours  # only reconcile comes here

    if path is not None:
        if not (machine is since is until is usd_per_hour is None):
            raise ConfigError("give either --hours or --machine --since --until --usd-per-hour, not both")
        return read_hours(path)
    if machine is None or since is None or until is None or usd_per_hour is None:
        raise ConfigError("what did machines cost? give --hours FILE, or --machine --since --until --usd-per-hour")
    paid = decimal_of(usd_per_hour, "--usd-per-hour")
    return [MachineHours(machine, moment_of(since, "--since"), moment_of(until, "--until"), paid)]
