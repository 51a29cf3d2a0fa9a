"""An ablation, one TOML file: a pretraining run, what its variants change, and what they all may spend."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, Literal

from tapwater.config.parse import apply_override, from_mapping, nearest, read_toml
from tapwater.config.pretrain import PretrainConfig, from_tables
from tapwater.errors import ConfigError

Equal = Literal["active_flops", "wall_clock"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # also that of a directory
TAKEN = ("plan.json", "results.json", "table.md", "report.html", "lock")  # files beside those directories
SECTIONS = tuple(each.name for each in fields(PretrainConfig))
# What must be the same for all variants, or is set by the ablation itself.
FIXED = {"train": {"directory", "steps", "minutes", "seed", "precision", "threads", "machine", "usd_per_hour"},
         "data": {"corpus"}, "parallel": None, "spikes": None}  # fmt: skip
BUDGETED = ("train.directory", "train.steps", "train.minutes")  # the file says them, not the base


@dataclass(frozen=True)
class BudgetSection:
    """The file without its variants. Of `flops`, `minutes` and `steps` one is given."""

    base: str  # a file as for `tapwater train`, beside this one
    directory: str  # of all runs and the results
    equal: Equal = "active_flops"  # what every run may spend: training FLOPs, or time of its steps
    seeds: int = 3  # runs of each variant: the base's train.seed, and those after it
    flops: float | None = None  # of a run; with active_flops
    minutes: float | None = None  # of a run's steps; with wall_clock
    steps: int | None = None  # of the base: what they cost is what each run may spend
    target_loss: float | None = None  # the cost to reach it is reported; None: the worst run's last loss

    def __post_init__(self) -> None:
        given = [name for name in ("flops", "minutes", "steps") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"give one of flops, minutes and steps, not {' and '.join(given) or 'none'}")
        wrong = "minutes" if self.equal == "active_flops" else "flops"
        if given[0] == wrong:
            raise ConfigError(f"{wrong} do not go with equal = {self.equal!r}")
        for name in (*given, "target_loss"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ConfigError(f"{name} must be above 0, got {value}")
        if not 1 <= self.seeds <= 1000:
            raise ConfigError(f"seeds must be between 1 and 1000, got {self.seeds}")


@dataclass(frozen=True)
class Variant:
    """The base with its changes; how long it runs and where is for the ablation to say."""

    name: str
    config: PretrainConfig


@dataclass(frozen=True)
class AblationConfig:
    """Everything `tapwater ablate` is told."""

    budget: BudgetSection
    base: PretrainConfig
    variants: tuple[Variant, ...]

    def choose(self, names: Sequence[str]) -> tuple[Variant, ...]:
        """The variants of these names, in the file's order; ConfigError naming the nearest of an unknown one."""
        known = [each.name for each in self.variants]
        for name in names:
            if name not in known:
                raise ConfigError(f"no variant {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        return tuple(each for each in self.variants if each.name in names)


def load_ablation(path: Path, overrides: Sequence[str] = ()) -> AblationConfig:
    """AblationConfig from a TOML file; `overrides`, as section.key=value, change the base and so every variant.

    A table of [[variants]] has a `name`, tables as the base has them, which go over the base's key by key, and
    `without`: a list of section.key that this variant does not have. Raises ConfigError for anything unknown (naming
    the nearest) or of a wrong type, and for changes of what must be the same for all.
    """
    values = read_toml(path)
    tables = values.pop("variants", None)
    if not isinstance(tables, list) or not tables or not all(isinstance(each, Mapping) for each in tables):
        raise ConfigError(f"{path}: there must be at least one table [[variants]]")
    budget = from_mapping(BudgetSection, values, str(path))
    base_path = path.parent / Path(budget.base).expanduser()
    base_tables = read_toml(base_path)
    for override in overrides:
        _check_override(override, tables, str(path))
        apply_override(base_tables, override)
    base = from_tables(base_tables, str(base_path))
    if base.parallel.processes > 1:
        raise ConfigError(f"{base_path}: an ablation's runs are of one process each, parallel is of several")
    if base.spikes.window:
        raise ConfigError(
            f"{base_path}: an ablation's runs do not go back after a loss spike, which would cost more than the "
            "budget; set spikes.window = 0"
        )
    variants = tuple(_variant(each, base_tables, str(path)) for each in tables)
    names = [each.name for each in variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: two variants are named {name!r}")
    return AblationConfig(budget, base, variants)


def _check_override(override: str, variants: Sequence[Mapping[str, Any]], where: str) -> None:
    """ConfigError for a setting that would not reach all variants."""
    name = override.partition("=")[0]
    if name in BUDGETED:
        raise ConfigError(
            f"{override}: {where} says where an ablation's runs are and how long they take; change it there"
        )
    section, _, key = name.partition(".")
    for table in variants:
        changes = table.get(section)
        if (isinstance(changes, Mapping) and key in changes) or name in _names(table.get("without", []), where):
            raise ConfigError(f"{override}: variant {table.get('name')} of {where} has its own {name}; change it there")


def _variant(table: Mapping[str, Any], base: Mapping[str, Any], where: str) -> Variant:
    name = table.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"{where}: a variant needs a name of letters, digits and . _ + -, got {name!r}")
    if name in TAKEN:
        raise ConfigError(f"{where}: a variant cannot be named {name!r}, which is a file of the ablation")
    where = f"{where}: variant {name}"
    merged = deepcopy(dict(base))
    for dropped in _names(table.get("without", []), where):
        section, _, key = dropped.partition(".")
        _check_free(section, key, where)
        if key not in merged.get(section, {}):
            raise ConfigError(f"{where}: without {dropped}: the base has no such key")
        del merged[section][key]
    for section, changes in table.items():
        if section in ("name", "without"):
            continue
        if section not in SECTIONS:
            raise ConfigError(f"{where}: unknown field {section!r}{nearest(section, ['without', *SECTIONS])}")
        if not isinstance(changes, Mapping):
            raise ConfigError(f"{where}: {section} must be a table")
        for key in changes:
            _check_free(section, key, where)
        merged[section] = {**merged.get(section, {}), **changes}
    return Variant(name, from_tables(merged, where))


def _names(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"{where}: without must be a list of section.key, got {value!r}")
    return value


def _check_free(section: str, key: str, where: str) -> None:
    fixed = FIXED.get(section, set())
    if fixed is None or key in fixed:
        raise ConfigError(
            f"{where}: {section}.{key} must be the same for all variants; set it in the base or not at all"
        )
