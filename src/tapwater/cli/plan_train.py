"""What `tapwater plan train` answers."""

from decimal import Decimal
from typing import Any

from tapwater.cli.plan_tables import GB, memory_facts, money
from tapwater.config import ModelConfig
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout
from tapwater.cost.memory import training_memory
from tapwater.cost.money import check_decimal, decimal_of
from tapwater.cost.recipe import Recipe
from tapwater.cost.training import training_days, training_step
from tapwater.errors import ConfigError


def training_facts(
    config: ModelConfig,
    machine: Machine,
    layout: Layout,
    recipe: Recipe,
    tokens: float,
    usd_per_device_hour: str | None,
) -> dict[str, Any]:
    """Memory first: ConfigError with what a device would hold when that is more than it can."""
    if not 1 <= tokens <= 1e18:
        raise ConfigError(f"--tokens must be from 1 to 1e18, got {tokens:g}")
    rent = _rent(machine, usd_per_device_hour)
    memory = training_memory(config, machine, layout, recipe)
    if not memory.fits:
        parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in memory.by_part.items() if size)
        raise ConfigError(
            f"it does not fit: a device would hold {memory.total_bytes / GB:.1f} GB ({parts}), of which "
            f"{memory.usable_bytes / GB:.1f} are usable; more pp, ep or tp, recomputation or a smaller micro-batch help"
        )
    step = training_step(config, machine, layout, recipe)
    hours = step.device_hours(tokens)
    return {
        "layout": str(layout),
        "devices": layout.devices,
        "tokens": tokens,
        "recipe": vars(recipe),
        "memory": memory_facts(memory),
        "step_by_part_s": step.by_part,
        "step_s": step.step_s,
        "tokens_per_s_per_device": step.tokens_per_s_per_device,
        "mfu": step.mfu,
        "days": training_days(hours, layout.devices),
        "device_hours": hours,
        "usd_per_device_hour": None if rent is None else money(rent),
        "usd": None if rent is None else money(step.usd(tokens, rent)),
    }


def _rent(machine: Machine, usd_per_device_hour: str | None) -> Decimal | None:
    """Of a device: what was given, else its part of the node's, None where that is not known."""
    if usd_per_device_hour is None:
        return None if machine.usd_per_hour is None else machine.usd_per_hour.amount / machine.devices
    rent = decimal_of(usd_per_device_hour, "--usd-per-device-hour")
    check_decimal("--usd-per-device-hour", rent, "0 or more", "9999.99")
    return rent
