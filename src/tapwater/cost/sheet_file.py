"""Price sheets as JSON files that cannot be edited unnoticed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tapwater.cost.money import build, read_json
from tapwater.cost.price import FORMAT, PriceSheet
from tapwater.errors import ConfigError

_DERIVED = ("costs_per_million", "prices_per_million", "version")


def sheet_json(sheet: PriceSheet) -> str:
    """The file's text: inputs, costs and prices, decimals as strings; the same sheet gives the same bytes."""
    return json.dumps({"version": sheet.version, **sheet.content}, indent=2, ensure_ascii=False) + "\n"


def write_sheet(sheet: PriceSheet, path: Path) -> None:
    """Write the sheet to a new file; ConfigError if another one is there, for requests were charged by it."""
    text = sheet_json(sheet).encode()
    try:
        with path.open("xb") as file:
            file.write(text)
    except FileExistsError:
        if not path.is_file() or path.read_bytes() != text:
            raise ConfigError(f"{path} is there already and is another sheet; choose another name") from None


def read_sheet(path: Path) -> PriceSheet:
    """The sheet of a file written by `write_sheet`.

    ConfigError names a format or field that is unknown, a field that is missing, of the wrong type or absurd, and a
    cost, price or version that does not follow from the inputs.
    """
    try:
        data = read_json(path.read_bytes(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a price sheet is a JSON object")
    if "format" not in data:
        raise ConfigError(f"{path}: missing field 'format'; a sheet written by `tapwater price sheet` has one")
    if type(data["format"]) is not int or data["format"] != FORMAT:
        raise ConfigError(
            f"{path}: format {data['format']!r} is unknown; this version of tapwater reads format {FORMAT}"
        )
    inputs = {key: value for key, value in data.items() if key not in ("format", *_DERIVED)}
    sheet = build(PriceSheet, inputs, str(path))
    expected = {"version": sheet.version, **sheet.content}
    for name in _DERIVED:
        _compare(data.get(name), expected[name], f"{path}: {name}")
    return sheet


def _compare(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in {**expected, **found}:
            _compare(found.get(key), expected.get(key), f"{where}.{key}")
    elif found != expected:
        raise ConfigError(
            f"{where} is {json.dumps(found)[:80]}, but {json.dumps(expected)[:80]} follows from the sheet's inputs; "
            "prices are computed, not typed in: change the inputs and make a new sheet"
        )
