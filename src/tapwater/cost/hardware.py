"""Machines: what they can at most, what they cost, and who says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tapwater.cost.kernels import KernelRates


@dataclass(frozen=True)
class Figure:
    """A number in the unit its field names, from `source` as of `date` (ISO year, month or day)."""

    value: float
    source: str
    date: str


@dataclass(frozen=True)
class Rent:
    """What an hour of a whole node costs."""

    amount: Decimal
    source: str
    date: str


@dataclass(frozen=True)
class Efficiency:
    """Shares of a machine's peaks that good software reaches, measured by somebody; no model has its own."""

    memory: Figure  # of read_bytes_per_s, streaming weights and cache
    matmul: Figure  # of flops_per_s, products with weights
    attention: Figure  # of flops_per_s, scores and weighted values
    network: Figure  # of link and network bandwidth, all-to-all


@dataclass(frozen=True)
class Machine:
    """A node of equal `devices`, a CPU machine being one; figures are per device, power and rent the node's.

    `flops_per_s` are dense peaks by precision (fp32, bf16, fp8, int8); `link_bytes_per_s` is what a device sends to
    others of its node, `network_bytes_per_s` to other nodes, each in one direction. None: not there or not known.
    """

    name: str
    description: str
    kind: Literal["cpu", "gpu"]
    devices: int
    memory_bytes: Figure
    read_bytes_per_s: Figure
    flops_per_s: Mapping[str, Figure]
    efficiency: Efficiency
    link_bytes_per_s: Figure | None = None
    network_bytes_per_s: Figure | None = None
    power_w: Figure | None = None
    usd_per_hour: Rent | None = None
    kernels: KernelRates | None = None  # of tapwater's own, measured on a CPU machine
