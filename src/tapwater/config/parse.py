"""Turn a mapping into a frozen dataclass, strictly: every key known, every type right, every error naming its field."""

import dataclasses
import difflib
import functools
import re
import tomllib
import types
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tapwater.errors import ConfigError

T = TypeVar("T")
_hints = functools.cache(get_type_hints)  # a file may hold hundreds of tables of one class


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build dataclass `cls` from `mapping`; `where` names the source in errors.

    Raises ConfigError for an unknown key (naming the nearest), a missing key, a value of the wrong type, or one that
    the class itself refuses.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a table of fields, got {_shown(mapping)}")
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyrefly: ignore[bad-argument-type]
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"{where}: unknown field {key!r}{nearest(key, fields)}")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in mapping.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: missing field {name!r}")
    try:
        return cls(**values)
    except ConfigError as error:  # the class's own checks know the fields, not where they came from
        raise ConfigError(f"{where}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError naming the file that is not there or cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the tables of a file; ConfigError for anything of another form."""
    name, equals, text = override.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{override!r}: overrides are written section.key=value, e.g. engine.threads=2")
    if "\n" in override or "\r" in override:
        raise ConfigError(f"{override!r}: an override is one line")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # a bare word is a string; the field's type is checked next
    table = values.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{override!r}: {section} is not a section")
    table[key] = value


def nearest(key: str, known: Mapping[str, Any] | list[str]) -> str:
    """A hint `; did you mean 'x'?` for a misspelt key, or nothing when no known key is near."""
    match = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        lists = [each for each in options if get_origin(each) is tuple]
        scalars = [each for each in options if each is not type(None) and each not in lists]
        option = lists[0] if lists and (isinstance(value, list | tuple) or not scalars) else scalars[0]
        return _convert(option, value, where)
    if origin is Literal:
        if value not in get_args(hint) or isinstance(value, bool):
            allowed = ", ".join(repr(each) for each in get_args(hint))
            raise ConfigError(f"{where}: {_shown(value)} is not one of {allowed}")
        return value
    if origin is tuple:
        item = get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list of {item.__name__}, got {_shown(value)}")
        return tuple(_convert(item, each, f"{where}[{index}]") for index, each in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table of fields, got {_shown(value)}")
        item = get_args(hint)[1]
        return {key: _convert(item, each, f"{where}: {key}") for key, each in value.items()}
    if hint is Decimal:
        if isinstance(value, Decimal):
            return value
        if not isinstance(value, str) or not re.fullmatch(r"-?\d+(\.\d+)?", value, re.ASCII):  # a float is not exact
            raise ConfigError(f'{where}: expected a decimal number as a string, e.g. "2.00", got {_shown(value)}')
        return Decimal(value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < 1e300:
            raise ConfigError(f"{where}: {_shown(value)} is not a finite number")
        return float(value)
    if (isinstance(value, bool) and hint is not bool) or not isinstance(value, hint):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**40:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print very long ones
    return f"{type(value).__name__} {value!r}"[:120]
