"""The cheapest way to serve a model on a machine: layout and batch within memory and latency limits."""

from dataclasses import dataclass
from decimal import Decimal
from math import ceil

from tapwater.config import ModelConfig
from tapwater.cost.candidates import chunk_tokens, layouts
from tapwater.cost.formats import Formats, cache_bytes_per_token
from tapwater.cost.hardware import Machine, Rent
from tapwater.cost.layout import Layout
from tapwater.cost.load import Point, Traffic, Unit
from tapwater.cost.memory import Memory, largest_batch, serving_memory
from tapwater.cost.throughput import Estimate, Serving, prefill
from tapwater.errors import ConfigError

SECONDS_PER_HOUR = 3600
MILLION = 10**6
MAX_UTILISATION = 0.95  # waiting for prompts is predicted, waiting for a place in a full batch is not
STEP = 1.001  # how closely the largest batch within the limits is looked for


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
            raise ConfigError(f"max_nodes must be from 1 to 100,000, got {self.max_nodes}")
        if not 0.001 <= self.utilisation <= MAX_UTILISATION:
            raise ConfigError(
                f"utilisation is a share from 0.001 to {MAX_UTILISATION}, got {self.utilisation}: 70% is 0.7; nearer "
                "to 1 requests wait for a free place, which is not predicted"
            )

    def excess(self, point: Point) -> float:
        """How many times over the limits a point is; up to 1 it keeps to them."""
        pairs = ((point.ttft_s, self.ttft_s), (point.tpot_s, self.tpot_s))
        return max((time / limit for time, limit in pairs if limit is not None), default=0.0)


@dataclass(frozen=True)
class TokenCost:
    """What a million tokens cost, without margin; Decimal, in US dollars."""

    input_miss_usd: Decimal
    input_hit_usd: Decimal
    output_usd: Decimal


@dataclass(frozen=True)
class BusySeconds:
    """Seconds of a whole unit that a token takes while nothing idles; the planned traffic takes exactly all of them."""

    input_miss_s: float
    input_hit_s: float
    output_s: float


@dataclass(frozen=True)
class Plan:
    """One unit: the devices that hold the model once or more, at the load they are planned for.

    `batch_limit` requests generate at most; `full` is decoding then, `point` what forms at the planned load. `nodes` is
    the part of a node that a small unit takes, or how many a large one does; `usd_per_hour` is for that.
    """

    serving: Serving
    traffic: Traffic
    limits: Limits
    nodes: float
    batch_limit: float
    full: Estimate
    point: Point
    largest_batch: int
    memory: Memory
    busy: BusySeconds
    usd_per_hour: Decimal | None
    cost: TokenCost | None

    @property
    def output_tokens_per_s(self) -> float:
        return self.point.requests_per_s * self.traffic.output_tokens

    @property
    def input_tokens_per_s(self) -> float:
        """Cache hits included."""
        return self.point.requests_per_s * self.traffic.prompt_tokens

    def units(self, requests_per_s: float) -> int:
        """How many such units carry a demanded load."""
        if not 0 < requests_per_s < 1e12:
            raise ConfigError(f"requests_per_s must be a positive number, got {requests_per_s}")
        return ceil(requests_per_s / self.point.requests_per_s)


class RefusedError(ConfigError):
    """A layout that does not work; `excess` says how many times over what is allowed it is."""

    def __init__(self, reason: str, excess: float) -> None:
        super().__init__(reason)
        self.excess = excess


def plan(config: ModelConfig, machine: Machine, formats: Formats, traffic: Traffic, limits: Limits) -> Plan:
    """The layout with the most requests per node of all that keep to the limits.

    ConfigError when none does, saying what was nearest: memory, or the limit that cannot be kept.
    """
    candidates: list[tuple[float, Unit, int]] = []
    refused: list[tuple[float, str]] = []
    for layout in layouts(config, machine, limits.max_nodes):
        try:
            unit, room = _unit(config, machine, formats, layout, traffic)
            candidates.append((limits.utilisation * unit.capacity(room) / node_share(layout, machine), unit, room))
        except ConfigError as error:
            refused.append((_excess(error), f"{layout}: {error}"))
    best: tuple[float, Unit, float, Point] | None = None
    for bound, unit, room in sorted(candidates, key=lambda each: each[0], reverse=True):
        if best is not None and bound <= best[0]:
            break  # limits only take away: no later layout gets past its own bound
        share = node_share(unit.serving.layout, machine)
        if best is not None and limits.excess(unit.at_load(best[0] * share, room)) > 1:
            continue  # at the best one's load it already waits too long, at more it waits longer
        try:
            batch, point = _within(unit, limits, room)
        except ConfigError as error:
            refused.append((_excess(error), f"{unit.serving.layout}: {error}"))
            continue
        rate = point.requests_per_s / share
        if best is None or rate > best[0]:
            best = rate, unit, batch, point
    if best is None:
        raise ConfigError(f"no layout on up to {limits.max_nodes} x {machine.name} works; nearest, {min(refused)[1]}")
    return _planned(best[1], limits, best[2], best[3])


def plan_layout(
    config: ModelConfig, machine: Machine, formats: Formats, layout: Layout, traffic: Traffic, limits: Limits
) -> Plan:
    """The largest batch of one layout that keeps to the limits; ConfigError when none does."""
    unit, room = _unit(config, machine, formats, layout, traffic)
    return _planned(unit, limits, *_within(unit, limits, room))


def node_share(layout: Layout, machine: Machine) -> float:
    """Nodes that a unit takes; of small units as many as fit share one."""
    if layout.devices > machine.devices:
        return -(-layout.devices // machine.devices)
    return 1 / (machine.devices // layout.devices)


def rent_of(rent: Rent, nodes: float) -> Decimal:
    """What an hour of so many nodes costs; a part of a node is one of equal ones, so no float enters."""
    return rent.amount * round(nodes) if nodes >= 1 else rent.amount / round(1 / nodes)


def busy_seconds(unit: Unit, full: Estimate) -> BusySeconds:
    """What tokens take. A miss takes what it does in a prompt without hits, a hit the rest of what the prompt takes,
    so that together they take what they take and a hit is never dearer; without hits in the traffic, as if half were.
    Where attending to hits hides behind something else, a hit takes what reading it once does.
    """
    serving, traffic = unit.serving, unit.traffic
    prompt, hits = traffic.prompt_tokens, traffic.hit_tokens or traffic.prompt_tokens // 2
    miss_s = 1 / prefill(serving, prompt).tokens_per_s
    if not hits:
        return BusySeconds(miss_s, miss_s, 1 / full.tokens_per_s)
    new = prompt - hits
    prompt_s = new / prefill(serving, prompt, hits).tokens_per_s
    bandwidth = serving.machine.read_bytes_per_s.value * serving.layout.devices
    read_s = cache_bytes_per_token(serving.config, serving.formats.cache) / bandwidth
    hit_s = min(max(read_s, (prompt_s - new * miss_s) / hits), miss_s)
    if traffic.hit_tokens:  # what rounding up to whole chunks has left over or taken away
        miss_s = (prompt_s - hits * hit_s) / new
    return BusySeconds(miss_s, hit_s, 1 / full.tokens_per_s)


def token_cost(busy: BusySeconds, usd_per_hour: Decimal, utilisation: float) -> TokenCost:
    """An hour's rent shared out by the time tokens take; idle time is paid by those who use the rest."""
    second = usd_per_hour / SECONDS_PER_HOUR / decimal(utilisation) * MILLION
    return TokenCost(*(second * decimal(each) for each in (busy.input_miss_s, busy.input_hit_s, busy.output_s)))


def decimal(number: float) -> Decimal:
    """Seconds and rates enter money here, to twelve digits; from then on all is exact."""
    return Decimal(f"{number:.12g}")


def _unit(
    config: ModelConfig, machine: Machine, formats: Formats, layout: Layout, traffic: Traffic
) -> tuple[Unit, int]:
    """With the most requests it holds at full length; RefusedError when it holds none."""
    serving = Serving(config, machine, formats, layout, chunk_tokens(machine))
    longest = traffic.prompt_tokens + traffic.output_tokens
    room = largest_batch(config, machine, layout, context=longest, formats=formats)
    if room < 1:
        needed = serving_memory(config, machine, layout, requests=layout.dp, context=longest, formats=formats)
        raise RefusedError(
            f"a device would hold {needed.total_bytes / 1e9:.1f} GB for one request of {longest:,} tokens a replica, "
            f"of {needed.usable_bytes / 1e9:.1f} GB that are usable",
            1e6 * needed.total_bytes / needed.usable_bytes,  # whatever fits is nearer
        )
    return Unit(serving, traffic), room


def _within(unit: Unit, limits: Limits, room: int) -> tuple[float, Point]:
    """The largest batch up to `room` that keeps to the limits when it is loaded as planned, and its point."""

    def loaded(batch: float) -> Point:
        return unit.at_load(limits.utilisation * unit.capacity(batch), batch)

    low, high = 1.0, float(room)
    point = loaded(high)
    if limits.excess(point) <= 1:
        return high, point
    best = loaded(low)
    if limits.excess(best) > 1:
        shown = f"ttft {best.ttft_s:.3g} s and tpot {best.tpot_s:.3g} s"
        raise RefusedError(f"even one request at a time has {shown}: over the limits", limits.excess(best))
    while high / low > STEP:
        middle = (low * high) ** 0.5
        point = loaded(middle)
        if limits.excess(point) <= 1:
            low, best = middle, point
        else:
            high = middle
    return low, best


def _planned(unit: Unit, limits: Limits, batch: float, point: Point) -> Plan:
    serving, traffic = unit.serving, unit.traffic
    config, machine, layout, formats = serving.config, serving.machine, serving.layout, serving.formats
    longest = traffic.prompt_tokens + traffic.output_tokens
    room = largest_batch(config, machine, layout, context=longest, formats=formats)
    memory = serving_memory(config, machine, layout, requests=ceil(batch), context=longest, formats=formats)
    nodes, full = node_share(layout, machine), unit.generated(batch)
    busy = busy_seconds(unit, full)
    rent = None if machine.usd_per_hour is None else rent_of(machine.usd_per_hour, nodes)
    cost = None if rent is None else token_cost(busy, rent, limits.utilisation)
    return Plan(serving, traffic, limits, nodes, batch, full, point, room, memory, busy, rent, cost)


def _excess(error: ConfigError) -> float:
    return error.excess if isinstance(error, RefusedError) else float("inf")
