"""Where routed experts lie when some are held twice: replicas of the busiest, packed so that devices are equally busy.

DeepSeek's units hold 32 redundant experts of V3 (open-infra-index, day 6). As their balancer (EPLB) does, a layer's
groups are kept on one node each when nodes divide the groups, since tokens visit few groups; else experts go anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from tapwater.config import ModelConfig
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """`physical_to_logical[slot]` is the expert in a slot; slots of a device are neighbours, devices of a node too."""

    physical_to_logical: tuple[int, ...]
    device_loads: tuple[float, ...]

    @property
    def imbalance(self) -> float:
        """The busiest device's load over the mean: the factor by which all wait for it; 1 when nothing is loaded."""
        total = sum(self.device_loads)
        return max(self.device_loads) * len(self.device_loads) / total if total else 1.0


def place_experts(
    loads: Sequence[float], *, num_slots: int, num_devices: int, num_nodes: int = 1, num_groups: int = 1
) -> Placement:
    """Replicate and pack one layer's experts, given how many tokens each is expected to see.

    Every expert gets a slot, every device as many slots as any other; an expert's load is shared equally by its
    replicas. ConfigError for counts that do not divide, too few slots, or a load that is negative or not finite.
    """
    _check(loads, num_slots, num_devices, num_nodes, num_groups)
    if num_groups % num_nodes:
        num_nodes, num_groups = 1, 1
    group_size = len(loads) // num_groups
    groups = [list(range(start, start + group_size)) for start in range(0, len(loads), group_size)]
    group_loads = [sum(loads[expert] for expert in group) for group in groups]
    devices: list[list[int]] = []
    for node in _pack(group_loads, num_nodes):
        experts = [expert for group in node for expert in groups[group]]
        replicas = _replicate(experts, loads, num_slots // num_nodes)
        shares = [loads[expert] / replicas.count(expert) for expert in replicas]
        devices += [[replicas[slot] for slot in bin_] for bin_ in _pack(shares, num_devices // num_nodes)]
    return placement_of(loads, [expert for device in devices for expert in device], num_devices)


def placement_of(loads: Sequence[float], physical_to_logical: Sequence[int], num_devices: int) -> Placement:
    """The loads that a given map, our own or another's, puts on its devices."""
    size = len(physical_to_logical) // num_devices
    shares = [loads[expert] / physical_to_logical.count(expert) for expert in physical_to_logical]
    device_loads = tuple(sum(shares[start : start + size]) for start in range(0, len(shares), size))
    return Placement(tuple(physical_to_logical), device_loads)


def experts_per_device(config: ModelConfig, *, redundant: int, devices: int) -> int:
    """Routed experts on each device of a unit; ConfigError when they do not divide."""
    slots = config.moe.n_routed_experts + redundant
    if redundant < 0 or devices < 1 or slots % devices:
        raise ConfigError(
            f"{config.moe.n_routed_experts} routed and {redundant} redundant experts do not spread evenly over "
            f"{devices} devices"
        )
    return slots // devices


def _replicate(experts: list[int], loads: Sequence[float], num_slots: int) -> list[int]:
    """`experts`, and each free slot to the expert whose replicas are then the busiest."""
    counts = dict.fromkeys(experts, 1)
    for _ in range(num_slots - len(experts)):
        busiest = max(counts, key=lambda expert: loads[expert] / counts[expert])
        counts[busiest] += 1
    return [expert for expert, count in counts.items() for _ in range(count)]


def _pack(weights: Sequence[float], num_bins: int) -> list[list[int]]:
    """Indices in `num_bins` bins of equal number: heaviest first into the lightest bin with room, then swaps.

    The swaps are what other balancers leave out: as long as exchanging an item of the heaviest bin with one of another
    leaves both lighter than it was, that is done.
    """
    room = len(weights) // num_bins
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        lightest = min((each for each in bins if len(each) < room), key=lambda each: _sum(weights, each))
        lightest.append(item)
    while _swap(weights, bins):
        pass
    return bins


def _swap(weights: Sequence[float], bins: list[list[int]]) -> bool:
    """Do the exchange that lowers the heaviest bin the most; whether there was one."""
    totals = [_sum(weights, each) for each in bins]
    heaviest = max(range(len(bins)), key=totals.__getitem__)
    best: tuple[float, int, int, int] | None = None
    for other in range(len(bins)):
        for i, item in enumerate(bins[heaviest]):
            for j, candidate in enumerate(bins[other]):
                change = weights[item] - weights[candidate]
                after = max(totals[heaviest] - change, totals[other] + change)
                if after < totals[heaviest] * (1 - 1e-9) and (best is None or after < best[0]):
                    best = after, other, i, j
    if best is None:
        return False
    _, other, i, j = best
    bins[heaviest][i], bins[other][j] = bins[other][j], bins[heaviest][i]
    return True


def _sum(weights: Sequence[float], items: Sequence[int]) -> float:
    return sum(weights[item] for item in items)


def _check(loads: Sequence[float], num_slots: int, num_devices: int, num_nodes: int, num_groups: int) -> None:
    counts = {"num_slots": num_slots, "num_devices": num_devices, "num_nodes": num_nodes, "num_groups": num_groups}
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"placement: {name} must be at least 1, got {value}")
    if num_slots < len(loads):
        raise ConfigError(f"placement: {num_slots} slots cannot hold {len(loads)} experts")
    for what, of, divisor in (
        ("num_slots", num_slots, num_devices),
        ("num_devices", num_devices, num_nodes),
        ("experts", len(loads), num_groups),
    ):
        if of % divisor:
            raise ConfigError(f"placement: {of} {what} do not divide by {divisor}")
    for expert, load in enumerate(loads):
        if not (isfinite(load) and load >= 0):
            raise ConfigError(f"placement: the load of expert {expert} must be a number of at least 0, got {load}")
