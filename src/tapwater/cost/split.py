"""Prompts and answers on devices of their own, as DeepSeek serves V3: units of each kind, in proportion to traffic."""

from dataclasses import dataclass
from math import ceil

from tapwater.config import ModelConfig
from tapwater.cost.candidates import chunk_tokens
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout
from tapwater.cost.load import Traffic, Unit
from tapwater.cost.memory import largest_batch
from tapwater.cost.plan import STEP, Limits, TokenCost, busy_seconds, node_share, rent_of, token_cost
from tapwater.cost.throughput import Estimate, Serving
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """Units of one kind: `estimate` is one that never idles, `requests_per_s` what it is planned to carry."""

    serving: Serving
    nodes: float
    estimate: Estimate
    requests_per_s: float

    def nodes_for(self, requests_per_s: float) -> float:
        """Nodes that carry a load, were units divisible."""
        return requests_per_s / self.requests_per_s * self.nodes

    def units_for(self, requests_per_s: float) -> int:
        return ceil(requests_per_s / self.requests_per_s)


@dataclass(frozen=True)
class SplitPlan:
    """Prefill and decode units; a decode unit generates for `batch` requests at once when it is full."""

    prefill: Part
    decode: Part
    traffic: Traffic
    batch: float
    ttft_s: float
    tpot_s: float
    cost: TokenCost | None


def plan_split(
    config: ModelConfig,
    machine: Machine,
    formats: Formats,
    prefill_layout: Layout,
    decode_layout: Layout,
    traffic: Traffic,
    limits: Limits,
) -> SplitPlan:
    """Rates of both kinds of unit at the limits' utilisation; `tpot_s` is kept even when a decode unit is full.

    Sending the cache from one to the other is left out. ConfigError when memory or a limit does not allow it.
    """
    started, generating = (
        Unit(Serving(config, machine, formats, layout, chunk_tokens(machine)), traffic)
        for layout in (prefill_layout, decode_layout)
    )
    longest = traffic.prompt_tokens + traffic.output_tokens
    for unit in (started, generating):
        if largest_batch(config, machine, unit.serving.layout, context=longest, formats=formats) < 1:
            raise ConfigError(f"layout {unit.serving.layout}: not even one request of {longest:,} tokens fits")
    room = largest_batch(config, machine, decode_layout, context=longest, formats=formats)
    batch = _batch(generating, limits.tpot_s, float(room))
    full, share = generating.generated(batch), limits.utilisation
    ttft_s = started.first_token_s(share / started.prompt_s, share, step_s=0.0)  # nobody generates beside them
    if limits.ttft_s is not None and ttft_s > limits.ttft_s:
        raise ConfigError(f"layout {prefill_layout}: a prompt waits {ttft_s:.3g} s, over the limit {limits.ttft_s:g} s")
    parts = (
        Part(started.serving, node_share(prefill_layout, machine), started.started, share / started.prompt_s),
        Part(
            generating.serving,
            node_share(decode_layout, machine),
            full,
            share * full.tokens_per_s / traffic.output_tokens,
        ),
    )
    cost = None
    if machine.usd_per_hour is not None:
        busy = busy_seconds(started, full)
        prompts, answers = (token_cost(busy, rent_of(machine.usd_per_hour, part.nodes), share) for part in parts)
        cost = TokenCost(prompts.input_miss_usd, prompts.input_hit_usd, answers.output_usd)
    return SplitPlan(*parts, traffic, batch, ttft_s, full.step_s, cost)


def _batch(unit: Unit, tpot_s: float | None, room: float) -> float:
    """The largest batch whose step keeps to the limit."""
    if tpot_s is None or unit.generated(room).step_s <= tpot_s:
        return room
    low, high = 1.0, room
    if unit.generated(low).step_s > tpot_s:
        raise ConfigError(
            f"layout {unit.serving.layout}: a token takes {unit.generated(low).step_s:.3g} s even for one request, "
            f"over the limit {tpot_s:g} s"
        )
    while high / low > STEP:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if unit.generated(middle).step_s <= tpot_s else (low, middle)
    return low
