"""Numbers a user gave that cannot be."""

from decimal import Decimal
from math import isfinite

from tapwater.errors import ConfigError


def at_least(least: int, **values: float | Decimal) -> None:
    """ConfigError naming the first value that is below `least`, or no number."""
    for name, value in values.items():
        if not (isfinite(value) and value >= least):
            raise ConfigError(f"{name} must be at least {least}, got {value}")


def above_zero(**values: float | Decimal) -> None:
    """ConfigError naming the first value that is not a positive, finite number."""
    for name, value in values.items():
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be above 0, got {value}")
