"""Predictions beside measurements: ours, as they were run, and published deployments, predicted anew each time."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tapwater.config import preset
from tapwater.config.parse import from_mapping, nearest
from tapwater.cost.candidates import chunk_tokens, layouts
from tapwater.cost.checks import above_zero
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import machine
from tapwater.cost.inputs import check_text
from tapwater.cost.layout import Layout, parse_layout
from tapwater.cost.memory import largest_batch
from tapwater.cost.plan import node_share
from tapwater.cost.plausible import check_origin
from tapwater.cost.throughput import Estimate, Serving, decode, prefill
from tapwater.errors import ConfigError

NOTHING = Estimate(0.0, 0.0, 0.0, 0.0, {}, ())  # of a layout in which not one request fits
_TABLE = Path(__file__).with_name("evidence.toml")


@dataclass(frozen=True)
class Measured:
    """A measurement of ours and what was predicted for it at that commit."""

    name: str
    predicted: float
    measured: float
    unit: str
    machine: str
    commit: str
    date: str
    command: str

    def __post_init__(self) -> None:
        above_zero(predicted=self.predicted, measured=self.measured)
        for name in ("name", "unit", "machine", "commit", "command"):
            check_text(name, getattr(self, name))
        check_origin(self.command, self.date)


@dataclass(frozen=True)
class Published:
    """A deployment somebody else measured, in tokens per second of a node, and what it is predicted from.

    `context` is a prompt's tokens for prefill; without `batch` as many requests generate as memory holds, and without
    `layout` in the one in which a whole node generates most.
    """

    name: str
    measured: float
    unit: str
    kind: Literal["prefill", "decode"]
    model: str
    machine: str
    weights: str
    cache: str
    context: int
    source: str
    date: str
    assumption: str
    layout: str | None = None
    batch: int | None = None
    hit_share: float = 0.0

    def __post_init__(self) -> None:
        above_zero(measured=self.measured)
        check_origin(self.source, self.date)

    def predict(self) -> Estimate:
        """By our roofline, per node and with cache hits counted as the source does."""
        return max((self._in(layout) for layout in self._layouts()), key=lambda each: each.tokens_per_s)

    def _layouts(self) -> list[Layout]:
        if self.layout is not None:
            return [parse_layout(self.layout)]
        node = machine(self.machine)
        return [each for each in layouts(preset(self.model), node, 1) if each.devices == node.devices]

    def _in(self, layout: Layout) -> Estimate:
        config, node, formats = preset(self.model), machine(self.machine), Formats(self.weights, self.cache)
        serving = Serving(config, node, formats, layout, chunk_tokens(node))
        share = 1 / node_share(layout, node)
        if self.kind == "prefill":
            hits = int(self.hit_share * self.context)
            found, share = prefill(serving, self.context, hits), share * self.context / (self.context - hits)
        else:
            room = largest_batch(config, node, layout, context=self.context, formats=formats)
            if not (self.batch or room):
                return NOTHING
            found = decode(serving, self.batch or room, self.context)
        rate, low, high = (share * each for each in (found.tokens_per_s, found.low, found.high))
        return Estimate(rate, low, high, found.step_s, found.parts, found.extrapolated)


@dataclass(frozen=True)
class Evidence:
    """A row as it is shown. `within`: the measurement lies in the interval, None where there is none."""

    name: str
    predicted: float
    measured: float
    unit: str
    machine: str
    date: str
    origin: str
    assumption: str = ""
    within: bool | None = None

    @property
    def factor(self) -> float:
        """How many times too high the prediction is."""
        return self.predicted / self.measured


def evidence(path: Path = _TABLE) -> list[Evidence]:
    """All rows of the table, ours first; ConfigError names file, row and field that is wrong."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    for kind in tables:
        if kind not in ("measured", "published"):
            raise ConfigError(f"{path}: unknown table {kind!r}{nearest(kind, ['measured', 'published'])}")
    rows = [_of_ours(from_mapping(Measured, each, where)) for each, where in _numbered(tables, "measured", path)]
    return rows + [
        _of_others(from_mapping(Published, each, where)) for each, where in _numbered(tables, "published", path)
    ]


def _numbered(tables: Mapping[str, Any], kind: str, path: Path) -> list[tuple[Any, str]]:
    return [(each, f"{path}: {kind} {number}") for number, each in enumerate(tables.get(kind, []), 1)]


def _of_ours(row: Measured) -> Evidence:
    origin = f"{row.command}, commit {row.commit}"
    return Evidence(row.name, row.predicted, row.measured, row.unit, row.machine, row.date, origin)


def _of_others(row: Published) -> Evidence:
    found = row.predict()
    where = f"{row.machine}, {row.layout or 'best layout of a node'}"
    within = found.low <= row.measured <= found.high
    return Evidence(
        row.name, found.tokens_per_s, row.measured, row.unit, where, row.date, row.source, row.assumption, within
    )
