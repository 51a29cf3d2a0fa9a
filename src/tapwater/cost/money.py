"""Exact money: decimals written as strings, nothing read through a float, JSON and TOML read strictly."""

import dataclasses
import functools
import json
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tapwater.config.parse import from_mapping
from tapwater.errors import ConfigError

T = TypeVar("T")
_hints = functools.cache(get_type_hints)  # a file may hold hundreds of tables of one class

_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")


@contextmanager
def own_context() -> Iterator[None]:
    """Decimals are computed to 28 digits inside it, and in a function it decorates, whatever context the caller set."""
    with localcontext(Context(prec=28, rounding=ROUND_HALF_EVEN)):
        yield


def decimal_of(value: object, where: str) -> Decimal:
    """The decimal a string such as "0.14" spells; ConfigError for a number that is not a string, or no number."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return Decimal(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ConfigError(f'{where}: write "{value}", not {value}, so that it never becomes a float')
    raise ConfigError(f'{where}: {_shown(value)} is not a decimal number such as "0.14"')


def date_of(value: object, where: str) -> date:
    """The date "2026-11-21" spells; ConfigError for anything else."""
    try:
        return date.fromisoformat(value)  # pyrefly: ignore[bad-argument-type]
    except (TypeError, ValueError):
        raise ConfigError(f'{where}: {_shown(value)} is not a date such as "2026-11-21"') from None


def moment_of(value: object, where: str) -> datetime:
    """The moment "2026-11-21T09:00:00+08:00" spells; ConfigError for anything else, and for a time without zone."""
    try:
        moment = datetime.fromisoformat(value)  # pyrefly: ignore[bad-argument-type]
    except (TypeError, ValueError):
        raise ConfigError(f'{where}: {_shown(value)} is not a time such as "2026-11-21T09:00:00+08:00"') from None
    check_zone(where, moment)
    return moment


def check_zone(where: str, moment: datetime) -> None:
    """ConfigError for a time that could be any of 24 hours."""
    if moment.utcoffset() is None:
        raise ConfigError(f"{where}: {moment.isoformat()} has no time zone; add one, such as +08:00 or Z")


def check_decimal(name: str, value: Decimal, low: str, high: str, hint: str = "") -> None:
    """ConfigError unless `value` is a Decimal above `low` (or equal to it when `low` is "0 or more") up to `high`."""
    if not isinstance(value, Decimal):
        raise ConfigError(f"{name}: expected a Decimal, got {_shown(value)}; a float would not be exact")
    if not value.is_finite() or value < 0 or value > Decimal(high) or (value == 0 and low == "above 0"):
        raise ConfigError(f"{name} must be {low}, at most {high}; got {plain(value)}{hint}")


def plain(value: Decimal) -> str:
    """One spelling for each number: no exponent, no trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def read_json(text: str | bytes, where: str, *, exact_numbers: bool = False) -> Any:
    """JSON without repeated keys or NaN; with `exact_numbers` fractions become Decimal, else they stay float."""

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{where}: {twice!r} is there twice")
        return found

    def no_constant(name: str) -> None:
        raise ConfigError(f"{where}: {name} is not a number")

    parse_float = Decimal if exact_numbers else float
    try:
        return json.loads(text, object_pairs_hook=no_repeats, parse_constant=no_constant, parse_float=parse_float)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None


def build(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """`from_mapping` that also reads decimals, dates and times from their strings."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a table of fields, got {_shown(mapping)}")
    hints = _hints(cls)
    decoded = {
        key: _decode(hints[key], value, f"{where}: {key}") if key in hints else value for key, value in mapping.items()
    }
    return from_mapping(cls, decoded, where)


def dump(value: Any) -> Any:
    """What `build` reads: dataclasses as tables, decimals in one spelling, times in UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return [dump(each) for each in value] if isinstance(value, tuple) else value


def _decode(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_decode(get_args(hint)[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    readers = {Decimal: decimal_of, date: date_of, datetime: moment_of}
    return readers[hint](value, where) if hint in readers else value


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:120]
