"""Whether a figure can be in the unit its field names, or in which it probably was, and whether it has an origin."""

import re
from collections.abc import Mapping
from datetime import date
from typing import Literal

from tapwater.errors import ConfigError

_GIGA: Mapping[str, float] = {"GB": 1e9, "MB": 1e6, "TB": 1e12}
_RATE: Mapping[str, float] = {"GB/s": 1e9, "TB/s": 1e12, "MB/s": 1e6}
_LINK: Mapping[str, float] = {**_RATE, "Gbit/s": 1e9 / 8}
_OPERATIONS: Mapping[str, float] = {"TFLOP/s": 1e12, "GFLOP/s": 1e9, "PFLOP/s": 1e15}

# By field: the unit it is in, what a figure may be at least and at most (GPU and CPU), other units people write it in.
# The limits only have to tell units apart, so they leave any machine of the last and the next ten years room.
_FIELDS: Mapping[str, tuple[str, tuple[float, float], tuple[float, float], Mapping[str, float]]] = {
    "memory_bytes": ("bytes", (1e9, 1e13), (1e8, 1e14), _GIGA),
    "read_bytes_per_s": ("bytes per second", (2e10, 1e14), (1e9, 1e13), _RATE),
    "link_bytes_per_s": ("bytes per second", (1e9, 1e13), (1e9, 1e13), _LINK),
    "network_bytes_per_s": ("bytes per second", (1e8, 1e12), (1e8, 1e12), _LINK),
    "flops_per_s": ("operations per second", (1e12, 1e17), (1e9, 1e15), _OPERATIONS),
    "power_w": ("watts", (50, 1e6), (1, 1e4), {"kW": 1e3}),
}


def check_units(shown: str, field: str, kind: Literal["cpu", "gpu"], value: float) -> None:
    """ConfigError calling the figure `shown` if no machine of `kind` has such a `value`; it names what fits instead."""
    unit, gpu, cpu, others = _FIELDS[field]
    low, high = gpu if kind == "gpu" else cpu
    if low <= value <= high:
        return
    meant = [
        f"{value * size:.6g} if {value:g} is in {name}" for name, size in others.items() if low <= value * size <= high
    ]
    hint = f"; write {' or '.join(meant)}" if value < low and meant else ""
    raise ConfigError(f"{shown}: {value:g} {unit} is not plausible ({low:g} to {high:g}){hint}")


def check_origin(source: str, when: str) -> None:
    """ConfigError for a source that is empty or a date that is not ISO's year, month or day."""
    if not source.strip():
        raise ConfigError("source is empty; say who states or measured it")
    try:
        if not re.fullmatch(r"\d{4}(-\d{2}){0,2}", when, re.ASCII):
            raise ValueError
        date.fromisoformat(when + "-01" * (2 - when.count("-")))
    except ValueError:
        raise ConfigError(f"date {when!r} is not an ISO date such as 2025-04-22, 2025-04 or 2025") from None
