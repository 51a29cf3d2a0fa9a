"""The ledger of charged requests and the hours machines were paid for: JSON lines, read one at a time.

A row of the ledger, in the order in which requests were finished:

    {"sequence": 1, "id": "...", "completed_at": "2026-11-21T09:00:00+00:00", "model": "...", "sheet_version": "...",
     "prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": 9, "completion_tokens": 5, "pico_usd": 123,
     "machine_s": 0.25}

`machine_s`, the request's share of a machine's time, is in all rows or in none. A row of machine hours:

    {"machine": "...", "from": "2026-11-21T00:00:00+00:00", "to": "2026-11-22T00:00:00+00:00", "usd_per_hour": "16"}
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tapwater.config.parse import nearest
from tapwater.cost.money import check_decimal, decimal_of, moment_of, plain, read_json
from tapwater.cost.price import Usage
from tapwater.errors import ConfigError

_USAGE = ("prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "completion_tokens")
_ROW = {
    **{"sequence": int, "id": str, "completed_at": str, "model": str, "sheet_version": str},
    **dict.fromkeys((*_USAGE, "pico_usd"), int),
}
_HOURS = dict.fromkeys(("machine", "from", "to", "usd_per_hour"), str)


@dataclass(frozen=True)
class LedgerRow:
    """One finished request, counted from 1; `machine_s` is its share of machine time, shares of a batch adding up."""

    sequence: int
    id: str
    completed_at: datetime
    model: str
    sheet_version: str
    usage: Usage
    pico_usd: int
    machine_s: Decimal | None = None

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise ConfigError(f"sequence must be at least 1, got {self.sequence}")


@dataclass(frozen=True)
class MachineHours:
    """A machine paid for from `start` (included) to `end` (not included) at dollars per hour; ConfigError if absurd."""

    machine: str
    start: datetime
    end: datetime
    usd_per_hour: Decimal

    def __post_init__(self) -> None:
        check_decimal("usd_per_hour", self.usd_per_hour, "above 0", "1000000")
        if self.end <= self.start:
            raise ConfigError(f"machine {self.machine}: to {self.end} is not after from {self.start}")

    @property
    def seconds(self) -> Decimal:
        span = self.end - self.start
        return span.days * 86_400 + span.seconds + Decimal(span.microseconds) / 1_000_000


def ledger_line(row: LedgerRow) -> str:
    """A row as the ledger holds it, newline included."""
    data = {
        **{"sequence": row.sequence, "id": row.id, "completed_at": row.completed_at.isoformat(), "model": row.model},
        **{"sheet_version": row.sheet_version, **{name: getattr(row.usage, name) for name in _USAGE}},
        "pico_usd": row.pico_usd,
    }
    text = json.dumps(data, ensure_ascii=False)
    return text + "\n" if row.machine_s is None else f'{text[:-1]}, "machine_s": {plain(row.machine_s)}}}\n'


def read_ledger(path: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[tuple[str, LedgerRow]]:
    """Rows with their place ("FILE: line 7"), each checked by itself; `progress` gets bytes read and bytes in all."""
    for where, data in _lines(path, progress):
        _check_fields(data, _ROW, {"machine_s"}, where)
        seconds = data.get("machine_s")
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, int | Decimal):
                raise ConfigError(f"{where}: machine_s is {seconds!r}, not a number of seconds")
            seconds = Decimal(seconds)
        completed_at = moment_of(data["completed_at"], f"{where}: completed_at")
        text = data["id"], completed_at, data["model"], data["sheet_version"]
        try:
            if seconds is not None:
                check_decimal("machine_s", seconds, "0 or more", "1000000000")
            usage = Usage(*(data[name] for name in _USAGE))
            row = LedgerRow(data["sequence"], *text, usage, data["pico_usd"], seconds)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        yield where, row


def read_hours(path: Path) -> list[MachineHours]:
    """Hours that machines were paid for; ConfigError with the line of the first row that cannot be."""
    found = []
    for where, data in _lines(path, None):
        _check_fields(data, _HOURS, set(), where)
        start, end = (moment_of(data[name], f"{where}: {name}") for name in ("from", "to"))
        amount = decimal_of(data["usd_per_hour"], f"{where}: usd_per_hour")
        try:
            found.append(MachineHours(data["machine"], start, end, amount))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return found


def _lines(path: Path, progress: Callable[[int, int], None] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            total, done = path.stat().st_size, 0
            for number, line in enumerate(file, 1):
                where = f"{path}: line {number}"
                if not line.endswith(b"\n"):
                    raise ConfigError(f"{where}: cut off, there is no newline at its end; it was not written whole")
                data = read_json(line, where, exact_numbers=True)
                if not isinstance(data, dict):
                    raise ConfigError(f"{where}: a row is a JSON object")
                yield where, data
                done += len(line)
                if progress is not None and (number % 1000 == 0 or done == total):
                    progress(done, total)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _check_fields(data: Mapping[str, Any], fields: Mapping[str, type], optional: set[str], where: str) -> None:
    for name in data.keys() - fields.keys() - optional:
        raise ConfigError(f"{where}: unknown field {name!r}{nearest(name, [*fields, *optional])}")
    for name, kind in fields.items():
        if name not in data:
            raise ConfigError(f"{where}: missing field {name!r}")
        if type(data[name]) is not kind:
            wanted = "a string" if kind is str else "a whole number"
            raise ConfigError(f"{where}: {name} is {data[name]!r}, not {wanted}")
