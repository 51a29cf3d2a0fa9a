"""How long a step takes where our kernels were not measured: the slower of computing and reading, part by part."""

from dataclasses import dataclass, replace

from tapwater.config import ModelConfig
from tapwater.cost.collectives import COMBINE_BYTES, all_reduce_s, link_rate, network_rate
from tapwater.cost.counts import num_moe_layers
from tapwater.cost.formats import WEIGHT_PRECISION, Formats, cache_bytes_per_token, weight_bytes
from tapwater.cost.hardware import Figure, Machine
from tapwater.cost.layout import Layout
from tapwater.cost.work import Attention, Product, Work
from tapwater.errors import ConfigError

DISPATCH_BYTES = 1  # a number sent to an expert in fp8 (DeepSeek-V3 report, section 3.2.2)
STATE_BYTES = 2  # a number of a hidden state summed over tensor-parallel devices


@dataclass(frozen=True)
class Part:
    """Seconds a device computes and reads; the slower of the two is what it takes."""

    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        return max(self.compute_s, self.memory_s)


def device_work(local: Work, group: Work, layout: Layout) -> Work:
    """One device's share of all layers: `local` is a step of the requests its copy of attention serves, `group` of all
    requests whose tokens reach its experts."""
    split = [each if each.is_copied else replace(each, weights=each.weights / layout.tp) for each in local.products]
    products = [each for each in split if each.part != "routed"]
    products += [replace(each, count=each.count / layout.ep) for each in group.products if each.part == "routed"]
    attention = replace(local.attention, macs=local.attention.macs / layout.tp)
    return replace(local, products=tuple(products), attention=attention, touched=group.touched / layout.ep)


def roofline_parts(machine: Machine, config: ModelConfig, work: Work, formats: Formats, tp: int) -> dict[str, Part]:
    """Computing and reading of a device's share of a step, by part; ConfigError for a precision it has no rate for."""
    parts: dict[str, Part] = {}
    for product in work.products:
        part, before = _product(machine, product, formats), parts.get(product.part, Part(0, 0))
        # each product waits for the one before it, so the slower of the two is added up, not the sums compared
        parts[product.part] = Part(before.compute_s + part.compute_s, before.memory_s + part.memory_s)
    parts["scores and values"] = _attention(machine, config, work.attention, formats, tp)
    return parts


def sums_s(machine: Machine, config: ModelConfig, rows: float, layout: Layout) -> float:
    """Seconds in which tensor-parallel devices add up the hidden states of `rows` tokens, twice a layer."""
    state_bytes = rows * config.hidden_size * STATE_BYTES
    return 2 * config.num_hidden_layers * all_reduce_s(machine, layout.tp, state_bytes)


def exchange_s(machine: Machine, config: ModelConfig, rows: float, layout: Layout) -> float:
    """Seconds in which a replica's `rows` tokens travel to their experts and back, over links and network at once."""
    if layout.ep == 1:
        return 0.0
    number = rows / layout.tp * num_moe_layers(config) * config.hidden_size * (DISPATCH_BYTES + COMBINE_BYTES)
    nodes = max(1, -(-layout.ep // machine.devices))
    inside = groups_touched(config, layout.ep) * (layout.ep - 1) / layout.ep
    within = number * min(inside, machine.devices) / link_rate(machine)
    if nodes == 1:
        return within
    across = number * groups_touched(config, nodes) * (nodes - 1) / nodes
    return max(within, across / network_rate(machine))


def stages_s(machine: Machine, config: ModelConfig, rows: float, layout: Layout) -> float:
    """Seconds in which hidden states of `rows` tokens go from each pipeline stage to the next."""
    if layout.pp == 1:
        return 0.0
    rate = link_rate(machine) if layout.devices <= machine.devices else network_rate(machine)
    return (layout.pp - 1) * rows * config.hidden_size * STATE_BYTES / rate


def groups_touched(config: ModelConfig, groups: int) -> float:
    """Of `groups` equal sets of a layer's experts, how many hold one that a token chooses, drawn one by one.

    The gate limits them to topk_group sets of its own n_group (report section 2.2.2). Within 2% of
    `traffic.expected_devices`, which is exact but needs sets that nest; redundant experts allow others (144 of V3's).
    """
    moe = config.moe
    limit = moe.topk_group if config.topk_method != "greedy" else moe.n_group
    reachable = groups * limit / moe.n_group
    return reachable * (1 - (1 - 1 / reachable) ** moe.num_experts_per_tok) if reachable > 1 else 1.0


def _product(machine: Machine, product: Product, formats: Formats) -> Part:
    format = formats.of(product.part)
    rate = precision_rate(machine, WEIGHT_PRECISION[format]).value * machine.efficiency.matmul.value
    read = machine.read_bytes_per_s.value * machine.efficiency.memory.value
    return Part(2 * product.macs / rate, weight_bytes(format, product.weights * product.count) / read)


def _attention(machine: Machine, config: ModelConfig, attention: Attention, formats: Formats, tp: int) -> Part:
    precision = "bf16" if "bf16" in machine.flops_per_s else "fp32"
    rate = precision_rate(machine, precision).value * machine.efficiency.attention.value
    read = machine.read_bytes_per_s.value * machine.efficiency.memory.value
    copies = 1 if config.is_mla else min(tp, config.num_key_value_heads)  # a latent belongs to all heads
    bytes_read = attention.positions * cache_bytes_per_token(config, formats.cache) / copies
    return Part(2 * attention.macs / rate, bytes_read / read)


def precision_rate(machine: Machine, precision: str) -> Figure:
    """The machine's peak rate; ConfigError naming those it has."""
    if precision not in machine.flops_per_s:
        has = ", ".join(machine.flops_per_s)
        raise ConfigError(f"{machine.name} has no rate for {precision}, it has {has}: choose another weight format")
    return machine.flops_per_s[precision]
