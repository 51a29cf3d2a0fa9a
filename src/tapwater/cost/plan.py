"""The cheapest way to serve a model on a machine: layout and batch within memory and latency limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from tapwater.config import ModelConfig
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout, check_layout
from tapwater.cost.load import Point, Traffic, at_load, capacity
from tapwater.cost.memory import Memory, largest_batch, serving_memory
from tapwater.cost.throughput import Serving, prefill
from tapwater.errors import ConfigError

CPU_CHUNK, GPU_CHUNK = 512, 8192  # prompt tokens computed at once: the engine's default, and what fills an accelerator
SECONDS_PER_HOUR = 3600
MILLION = 10**6


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to; None: no limit. `utilisation` is the share of its capacity that a unit is loaded to."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    max_nodes: int = 1
    utilisation: float = 0.7

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            limit = getattr(self, name)
            if limit is not None and not 1e-6 < limit < 1e6:
                raise ConfigError(f"{name} must be a positive number of seconds, got {limit}")
        if not 1 <= self.max_nodes <= 10**5:
            raise ConfigError(f"max_nodes must be at least 1, got {self.max_nodes}")
        if not 0 < self.utilisation < 1:
            raise ConfigError(f"utilisation is a share between 0 and 1, got {self.utilisation}: 70% is 0.7")


@dataclass(frozen=True)
class TokenCost:
    """What a million tokens cost at the plan's utilisation, without margin; Decimal, in US dollars."""

    input_miss_usd: Decimal
    input_hit_usd: Decimal
    output_usd: Decimal


@dataclass(frozen=True)
class Plan:
    """One unit: the devices that hold the model once or more, at the load they are planned for."""

    serving: Serving
    traffic: Traffic
    nodes: float
    point: Point
    largest_batch: int
    memory: Memory
    usd_per_hour: Decimal | None
    cost: TokenCost | None

    @property
    def output_tokens_per_s(self) -> float:
        return self.point.requests_per_s * self.traffic.output_tokens

    @property
    def input_tokens_per_s(self) -> float:
        return self.point.requests_per_s * self.traffic.prompt_tokens


def plan(config: ModelConfig, machine: Machine, formats: Formats, traffic: Traffic, limits: Limits) -> Plan:
    """The layout with the most requests per device of all that keep to the limits.

    ConfigError when none does, saying what was nearest: memory, or the limit that cannot be kept.
    """
    best: Plan | None = None
    refused: list[str] = []
    for layout in layouts(config, machine, limits.max_nodes):
        try:
            found = plan_layout(config, machine, formats, layout, traffic, limits)
        except ConfigError as error:
            refused.append(f"{layout}: {error}")
            continue
        if best is None or _per_device(found) > _per_device(best):
            best = found
    if best is None:
        raise ConfigError(f"no layout on {limits.max_nodes} x {machine.name} works; the last tried, {refused[-1]}")
    return best


def plan_layout(
    config: ModelConfig, machine: Machine, formats: Formats, layout: Layout, traffic: Traffic, limits: Limits
) -> Plan:
    """The largest batch of one layout that keeps to the limits; ConfigError when none does."""
    serving = Serving(config, machine, formats, layout, CPU_CHUNK if machine.kernels is not None else GPU_CHUNK)
    longest = traffic.prompt_tokens + traffic.output_tokens
    room = largest_batch(config, machine, layout, context=longest, formats=formats)
    if room < 1:
        needed = serving_memory(config, machine, layout, requests=layout.dp, context=longest, formats=formats)
        raise ConfigError(
            f"a device would hold {needed.total_bytes / 1e9:.1f} GB for one request of {longest:,} tokens a replica, "
            f"of {needed.usable_bytes / 1e9:.1f} GB that are usable"
        )
    point = _loaded(serving, traffic, limits, room)
    if not _keeps(point, limits):
        point = _smaller(serving, traffic, limits, room)
    memory = serving_memory(config, machine, layout, requests=room, context=longest, formats=formats)
    nodes = max(1, -(-layout.devices // machine.devices)) if layout.devices > machine.devices else 1
    rent = None if machine.usd_per_hour is None else machine.usd_per_hour.amount * nodes
    cost = None if rent is None else token_cost(serving, traffic, point, rent, limits.utilisation)
    return Plan(serving, traffic, nodes, point, room, memory, rent, cost)


def token_cost(serving: Serving, traffic: Traffic, point: Point, rent: Decimal, utilisation: float) -> TokenCost:
    """An hour's rent shared out by the time tokens take; a hit costs what attending to it adds to a prompt."""
    second = rent / SECONDS_PER_HOUR / _decimal(utilisation)
    hit_s = 0.0
    hits = traffic.hit_tokens or traffic.prompt_tokens // 2
    if hits:
        new = traffic.prompt_tokens - hits
        with_hits, without = prefill(serving, traffic.prompt_tokens, hits), prefill(serving, new)
        hit_s = max(0.0, new / with_hits.tokens_per_s - new / without.tokens_per_s) / hits
    return TokenCost(
        second * MILLION / _decimal(prefill(serving, traffic.prompt_tokens).tokens_per_s),
        second * MILLION * _decimal(hit_s),
        second * MILLION / _decimal(point.decode.tokens_per_s),
    )


def layouts(config: ModelConfig, machine: Machine, max_nodes: int) -> Iterator[Layout]:
    """Layouts worth trying: powers of two of a node's devices, whole nodes beyond; experts over all of a stage."""
    if machine.kernels is not None:
        yield Layout()
        return
    for devices in _device_counts(machine.devices, max_nodes):
        for pp in (1, 2, 4, 8, 16):
            for tp in (1, 2, 4, 8):
                if devices % (pp * tp) or tp > machine.devices:
                    continue
                ep = devices // pp if config.is_moe else 1
                layout = Layout(dp=devices // (pp * tp), tp=tp, ep=ep, pp=pp)
                try:
                    check_layout(layout, config)
                except ConfigError:  # of the candidates only, never of what a user asked for
                    continue
                yield layout


def _device_counts(devices: int, max_nodes: int) -> list[int]:
    within = [2**power for power in range(devices.bit_length()) if 2**power < devices]
    nodes = [node for node in (1, 2, 4, 8, 16, 18, 32, 40) if node < max_nodes] + [max_nodes]
    return within + [node * devices for node in nodes]


def _loaded(serving: Serving, traffic: Traffic, limits: Limits, batch: float) -> Point:
    return at_load(serving, traffic, limits.utilisation * capacity(serving, traffic, batch), batch)


def _smaller(serving: Serving, traffic: Traffic, limits: Limits, room: float) -> Point:
    """The most loaded point within the limits below the batch that memory allows."""
    low, high = 1.0, float(room)
    best = _loaded(serving, traffic, limits, low)
    if not _keeps(best, limits):
        shown = f"ttft {best.ttft_s:.3g} s and tpot {best.tpot_s:.3g} s"
        raise ConfigError(f"even one request at a time has {shown}: over the limits")
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        point = _loaded(serving, traffic, limits, middle)
        if _keeps(point, limits):
            low, best = middle, point
        else:
            high = middle
    return best


def _keeps(point: Point, limits: Limits) -> bool:
    return (limits.ttft_s is None or point.ttft_s <= limits.ttft_s) and (
        limits.tpot_s is None or point.tpot_s <= limits.tpot_s
    )


def _per_device(found: Plan) -> float:
    return found.point.requests_per_s / found.serving.layout.devices


def _decimal(number: float) -> Decimal:
    """Seconds and rates enter money here, to twelve digits; from then on all is exact."""
    return Decimal(f"{number:.12g}")
