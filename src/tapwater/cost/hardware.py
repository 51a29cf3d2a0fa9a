"""Machines: what they can at most, what they cost, and who says so."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tapwater.config.parse import from_mapping, nearest, read_toml
from tapwater.cost.figure import Figure, Rent
from tapwater.cost.kernel_rates import KernelRates
from tapwater.cost.plausible import check_units
from tapwater.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "fp8", "int8")
NAME = r"[a-z0-9][a-z0-9.-]*"
NAME_RULE = "a machine is named in lower-case letters, digits, dots and dashes"
_CATALOGUE = Path(__file__).with_name("hardware.toml")


@dataclass(frozen=True)
class Efficiency:
    """Shares of a machine's peaks that good software reaches, measured by somebody; no model has its own."""

    memory: Figure  # of read_bytes_per_s, streaming weights and cache
    matmul: Figure  # of flops_per_s, products with weights
    attention: Figure  # of flops_per_s, scores and weighted values
    network: Figure  # of link and network bandwidth, all-to-all

    def __post_init__(self) -> None:
        for name in (field.name for field in dataclasses.fields(self)):
            share = getattr(self, name).value
            if share > 1:
                percent = f"; {share:g} percent is written {share / 100:g}" if share <= 100 else ""
                raise ConfigError(f"{name}: {share:g} is no share of a peak: it must be at most 1{percent}")


@dataclass(frozen=True)
class Machine:
    """A node of equal `devices`, a CPU machine being one; figures are per device, power and rent the node's.

    `flops_per_s` are dense peaks by precision (fp32, bf16, fp8, int8); `link_bytes_per_s` is what a device sends to
    others of its node, `network_bytes_per_s` to other nodes, each in one direction. None: not there or not known.
    ConfigError for a figure that no such machine has, naming the units it was probably meant in.
    """

    name: str
    description: str
    kind: Literal["cpu", "gpu"]
    devices: int
    memory_bytes: Figure
    read_bytes_per_s: Figure
    flops_per_s: Mapping[str, Figure]
    efficiency: Efficiency
    link_bytes_per_s: Figure | None = None
    network_bytes_per_s: Figure | None = None
    power_w: Figure | None = None
    usd_per_hour: Rent | None = None
    kernels: KernelRates | None = None  # of tapwater's own, measured on a CPU machine

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise ConfigError(f"name {self.name!r}: {NAME_RULE}")
        if not 1 <= self.devices <= 1024 or (self.kind == "cpu" and self.devices > 1):
            limit = "a CPU machine is one device" if self.kind == "cpu" else "a node has 1 to 1024"
            raise ConfigError(f"devices {self.devices}: {limit}")
        if not self.flops_per_s:
            raise ConfigError(f"flops_per_s: no peak given; known precisions: {', '.join(PRECISIONS)}")
        for precision, peak in self.flops_per_s.items():
            if precision not in PRECISIONS:
                hint = nearest(precision, list(PRECISIONS))
                raise ConfigError(f"flops_per_s: unknown precision {precision!r}{hint}; known: {', '.join(PRECISIONS)}")
            check_units(f"flops_per_s: {precision}", "flops_per_s", self.kind, peak.value)
        for name in ("memory_bytes", "read_bytes_per_s", "link_bytes_per_s", "network_bytes_per_s", "power_w"):
            figure: Figure | None = getattr(self, name)
            if figure is not None:
                check_units(name, name, self.kind, figure.value)

    @property
    def ridge_flops_per_byte(self) -> dict[str, float]:
        """By precision, how many operations a byte from memory must feed before the peak is the limit."""
        return {name: peak.value / self.read_bytes_per_s.value for name, peak in self.flops_per_s.items()}


def machines(extra: Path | None = None) -> dict[str, Machine]:
    """The catalogue by name, and behind it the machines of `extra`: a TOML file or a directory of them.

    Raises ConfigError for a file that is wrong and for a name that is taken.
    """
    found = dict(_shipped())
    origin = dict.fromkeys(found, "the catalogue")
    paths = [] if extra is None else sorted(extra.glob("*.toml")) if extra.is_dir() else [extra]
    for path in paths:
        for name, each in load_machines(path).items():
            if name in found:
                raise ConfigError(f"machine {name!r} is both in {origin[name]} and in {path}; rename one of them")
            found[name], origin[name] = each, str(path)
    return found


def machine(name: str, extra: Path | None = None) -> Machine:
    """The machine of that name from the catalogue or `extra`; ConfigError naming the nearest for another name."""
    known = machines(extra)
    if name not in known:
        raise ConfigError(f"no machine {name!r}{nearest(name.lower(), known)}; known: {', '.join(known)}")
    return known[name]


def check_name(name: str, extra: Path | None, path: Path) -> None:
    """ConfigError if a machine that is to be written to `path` cannot bear `name`: taken elsewhere, or malformed."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"name {name!r}: {NAME_RULE}")
    if name in _shipped():
        raise ConfigError(f"machine {name!r} is in the catalogue; choose another name")
    for each in [] if extra is None or not extra.is_dir() else sorted(extra.glob("*.toml")):
        if each != path and name in load_machines(each):
            raise ConfigError(f"machine {name!r} is already in {each}; choose another name")


def load_machines(path: Path) -> dict[str, Machine]:
    """The machines of a TOML file of the catalogue's form: a table `[NAME]` each, its fields Machine's.

    `[efficiency.gpu]` and `[efficiency.cpu]` say what machines of a kind reach; where they are missing the catalogue's
    hold, and a machine's own `efficiency` replaces any of the four shares. ConfigError names file, machine and field.
    """
    return _machines(path, read_toml(path), _shipped_tables()["efficiency"])


def to_toml(machine: Machine) -> str:
    """A file that `load_machines` reads as this very machine."""
    values = {name: value for name, value in dataclasses.asdict(machine).items() if name != "name"}
    name = f'"{machine.name}"' if "." in machine.name else machine.name
    return "\n".join(_table(name, values)).lstrip() + "\n"


def catalogue_efficiency(kind: Literal["cpu", "gpu"]) -> Efficiency:
    """What software reaches on machines of a kind, as the catalogue has it."""
    return from_mapping(Efficiency, _shipped_tables()["efficiency"][kind], f"efficiency.{kind}")


@cache
def _shipped() -> dict[str, Machine]:
    return _machines(_CATALOGUE, _shipped_tables(), {})


@cache
def _shipped_tables() -> dict[str, Any]:
    return read_toml(_CATALOGUE)


def _machines(path: Path, tables: Mapping[str, Any], efficiency: Mapping[str, Any]) -> dict[str, Machine]:
    for name, each in tables.items():
        if not isinstance(each, dict):
            raise ConfigError(f"{path}: {name} is not in a table; a machine is a table [NAME] of its figures")
    own = tables.get("efficiency", {})
    for kind, shares in own.items():
        if kind not in ("cpu", "gpu"):
            raise ConfigError(f"{path}: efficiency: unknown kind {kind!r}{nearest(kind, ['cpu', 'gpu'])}")
        from_mapping(Efficiency, shares, f"{path}: efficiency: {kind}")
    named = {name: values for name, values in tables.items() if name != "efficiency"}
    if not named:
        raise ConfigError(f"{path}: no machine in it; one is a table [NAME] of its figures")
    return {name: _machine(name, values, {**efficiency, **own}, f"{path}: {name}") for name, values in named.items()}


def _machine(name: str, values: Mapping[str, Any], efficiency: Mapping[str, Any], where: str) -> Machine:
    if "name" in values:
        raise ConfigError(f"{where}: unknown field 'name'; a machine's name is its table's")
    shares = values.get("efficiency", {})
    if isinstance(shares, Mapping):  # another type, or kind, is from_mapping's to refuse
        shares = {**efficiency.get(str(values.get("kind")), {}), **shares}
    return from_mapping(Machine, {"name": name, **values, "efficiency": shares}, where)


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    """The lines of a TOML table: values and figures first, then the tables within it."""
    given = {key: value for key, value in values.items() if value is not None}
    inner = {key for key, value in given.items() if _is_table(value) and any(map(_is_table, value.values()))}
    lines = ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in given.items() if key not in inner)]
    for key in given:
        if key in inner:
            lines += _table(f"{name}.{key}", given[key])
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_value(each)}' for key, each in value.items())} }}"
    if isinstance(value, str | Decimal):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # the one that TOML escapes too
    return repr(value)
