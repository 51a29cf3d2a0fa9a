"""A day of a service from published inputs: what it cost, what it would have earned, what a token cost."""

from dataclasses import dataclass
from decimal import Decimal

from tapwater.cost.compare import Amounts, find_price
from tapwater.cost.money import check_decimal, own_context
from tapwater.errors import ConfigError

_MILLION = 1_000_000
_SECONDS = 3600


@dataclass(frozen=True)
class Day:
    """What was published of a service: machines, their rent, tokens and speed; `input_tokens` include cache hits.

    Prefill nodes do `prefill_tokens_per_s` of input, hits included, decode nodes `decode_tokens_per_s` of output, each
    per node. `prices` are dollars per million tokens. ConfigError for counts that contradict each other.
    """

    name: str
    source: str
    date: str
    hours: Decimal
    nodes: Decimal
    gpus_per_node: int
    usd_per_gpu_hour: Decimal
    input_tokens: int
    input_hit_tokens: int
    output_tokens: int
    prefill_tokens_per_s: Decimal
    decode_tokens_per_s: Decimal
    prices: Amounts

    def __post_init__(self) -> None:
        for name in ("hours", "nodes", "usd_per_gpu_hour", "prefill_tokens_per_s", "decode_tokens_per_s"):
            check_decimal(name, getattr(self, name), "above 0", "1000000000")
        for name in ("gpus_per_node", "input_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.input_hit_tokens <= self.input_tokens:
            raise ConfigError(f"input_hit_tokens must be 0 to input_tokens, got {self.input_hit_tokens}")
        if self.input_hit_tokens and self.prices.input_hit is None:
            raise ConfigError("prices: input_hit is missing, but there were cache hits")


@dataclass(frozen=True)
class Account:
    """Dollars of the day. `margin` is profit over cost, `gross_margin` profit over revenue.

    `prefill_nodes` and `decode_nodes` are those the speeds call for; costs per million divide a node's hour by them.
    """

    cost_usd: Decimal
    revenue_usd: Decimal
    margin: Decimal
    gross_margin: Decimal
    prefill_nodes: Decimal
    decode_nodes: Decimal
    hit_share: Decimal
    input_usd_per_million: Decimal
    output_usd_per_million: Decimal
    blended_usd_per_million: Decimal

    @property
    @own_context()
    def profit_usd(self) -> Decimal:
        return self.revenue_usd - self.cost_usd

    @property
    @own_context()
    def nodes(self) -> Decimal:
        return self.prefill_nodes + self.decode_nodes


@dataclass(frozen=True)
class Published:
    """What the source itself says came out."""

    cost_usd: Decimal
    revenue_usd: Decimal
    margin: Decimal
    nodes: Decimal
    hit_share: Decimal


@own_context()
def account(day: Day) -> Account:
    """Cost, revenue, nodes and cost per token that follow from a day's inputs."""
    seconds, node_hour = day.hours * _SECONDS, day.gpus_per_node * day.usd_per_gpu_hour
    cost = day.nodes * node_hour * day.hours
    revenue = (
        day.input_hit_tokens * (day.prices.input_hit or Decimal(0))
        + (day.input_tokens - day.input_hit_tokens) * day.prices.input_miss
        + day.output_tokens * day.prices.output
    ) / _MILLION
    return Account(
        cost_usd=cost,
        revenue_usd=revenue,
        margin=(revenue - cost) / cost,
        gross_margin=(revenue - cost) / revenue,
        prefill_nodes=day.input_tokens / (seconds * day.prefill_tokens_per_s),
        decode_nodes=day.output_tokens / (seconds * day.decode_tokens_per_s),
        hit_share=Decimal(day.input_hit_tokens) / day.input_tokens,
        input_usd_per_million=node_hour * _MILLION / _SECONDS / day.prefill_tokens_per_s,
        output_usd_per_million=node_hour * _MILLION / _SECONDS / day.decode_tokens_per_s,
        blended_usd_per_million=cost * _MILLION / (day.input_tokens + day.output_tokens),
    )


def published_day(prices: str = "DeepSeek-R1") -> Day:
    """DeepSeek's V3/R1 service for 24 hours, all tokens at the public price `prices` (its own account: R1's)."""
    entry = find_price(prices)
    if entry.usd is None or entry.usd.input_hit is None:
        raise ConfigError(f"{entry.label} has no dollar price for cache hits; choose another, such as DeepSeek-R1")
    return Day(
        name="DeepSeek-V3/R1 in production",
        source="deepseek-ai/open-infra-index, day 6, V3/R1 inference system overview",
        date="2025-02-28",
        hours=Decimal(24),
        nodes=Decimal("226.75"),
        gpus_per_node=8,
        usd_per_gpu_hour=Decimal(2),
        input_tokens=608_000_000_000,
        input_hit_tokens=342_000_000_000,
        output_tokens=168_000_000_000,
        prefill_tokens_per_s=Decimal(73_700),
        decode_tokens_per_s=Decimal(14_800),
        prices=entry.usd,
    )


# The source's own results, at R1's prices; token counts are published in whole billions, hence the last digits.
PUBLISHED = Published(
    cost_usd=Decimal(87_072),
    revenue_usd=Decimal(562_027),
    margin=Decimal("5.45"),
    nodes=Decimal("226.75"),
    hit_share=Decimal("0.563"),
)
