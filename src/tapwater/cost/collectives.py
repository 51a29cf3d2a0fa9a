"""Seconds that devices of a layout spend sending each other numbers, at a machine's share of its bandwidths."""

from tapwater.config import ModelConfig
from tapwater.cost.formats import weight_bytes
from tapwater.cost.hardware import Figure, Machine
from tapwater.cost.layout import Layout
from tapwater.cost.recipe import PRECISIONS, Recipe
from tapwater.cost.shards import Shard
from tapwater.cost.traffic import expected_devices
from tapwater.errors import ConfigError

COMBINE_BYTES = 2  # results of experts and their gradients come back in bf16


def expert_bytes(config: ModelConfig, devices: int, dispatch_bytes: int) -> float:
    """Bytes one token sends and gets back in one layer and direction if experts are spread over `devices`.

    A copy goes to each device that holds a chosen expert, once, and comes back as one sum; the token's own device, one
    in `devices`, costs nothing.
    """
    elsewhere = expected_devices(config, devices) * (devices - 1) / devices
    return elsewhere * config.hidden_size * (dispatch_bytes + COMBINE_BYTES)


def expert_exchange_s(config: ModelConfig, machine: Machine, layout: Layout, recipe: Recipe, tokens: float) -> float:
    """Seconds of dispatch and combine in one layer for a device's `tokens`; the backward pass takes as long again.

    Between nodes a token crosses once per node it visits, then spreads over the node's links; both go on at once, so
    the slower counts (DeepSeek-V3 report section 3.2.2).
    """
    if layout.ep == 1:
        return 0.0
    dispatch = PRECISIONS[recipe.precision]
    nodes, rest = divmod(layout.ep, machine.devices)
    if layout.ep <= machine.devices:
        return tokens * expert_bytes(config, layout.ep, dispatch) / link_rate(machine)
    if rest:
        raise ConfigError(f"layout: ep {layout.ep} is not a multiple of {machine.name}'s {machine.devices} devices")
    between = tokens * expert_bytes(config, nodes, dispatch) / network_rate(machine)
    inside = expected_devices(config, layout.ep) * (machine.devices - 1) / machine.devices
    return max(between, tokens * inside * config.hidden_size * (dispatch + COMBINE_BYTES) / link_rate(machine))


def all_reduce_s(machine: Machine, devices: int, size_bytes: float) -> float:
    """Seconds of a ring all-reduce: each device sends 2 (n - 1) / n of the array."""
    if devices == 1:
        return 0.0
    bandwidth = link_rate(machine) if devices <= machine.devices else network_rate(machine)
    return 2 * (devices - 1) / devices * size_bytes / bandwidth


def gradient_exchange_s(machine: Machine, layout: Layout, recipe: Recipe, shard: Shard) -> float:
    """Seconds of ZeRO-1 per step: gradients are reduced to the device that owns them, new weights come back."""
    sizes = []
    for weights, copies in ((shard.dense, layout.dp), (shard.routed, layout.dp * layout.tp // layout.ep)):
        moved = weight_bytes(recipe.gradient_format, weights) + weight_bytes(recipe.weight_format, weights)
        sizes.append(moved * (copies - 1) / copies)
    if not sum(sizes):
        return 0.0
    return sum(sizes) / (link_rate(machine) if layout.devices <= machine.devices else network_rate(machine))


def link_rate(machine: Machine) -> float:
    """Bytes per second a device sends to others of its node; ConfigError where there is no link."""
    return _effective(machine, machine.link_bytes_per_s, "link_bytes_per_s", "between devices of a node")


def network_rate(machine: Machine) -> float:
    """Bytes per second a device sends to other nodes; ConfigError where there is no network."""
    return _effective(machine, machine.network_bytes_per_s, "network_bytes_per_s", "between nodes")


def _effective(machine: Machine, figure: Figure | None, name: str, where: str) -> float:
    if figure is None:
        raise ConfigError(f"machine {machine.name} has no {name}: this layout sends {where}")
    return figure.value * machine.efficiency.network.value
