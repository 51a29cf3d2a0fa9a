"""Measures the machine this runs on, as an entry of the catalogue of machines."""

import os
import platform
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tapwater.calibration.kernels import Progress, measure_kernels
from tapwater.calibration.probe import random_matrix
from tapwater.cost.hardware import Efficiency, Figure, Machine, Rent, catalogue_efficiency
from tapwater.cost.kernel_rates import KernelRates
from tapwater.ops.native import Kernels
from tapwater.ops.peak import least_seconds, products_per_s
from tapwater.ops.quant import Format

ROUNDS = 3  # of everything; the median counts, and how far rounds differ is kept as `drift`
READ_BYTES = 2**28  # more than caches hold
MATMUL = 1536
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def measure_machine(name: str, threads: int, rent: Rent | None, progress: Progress) -> Machine:
    """Bandwidth, products per precision and the kernels' rates of this machine, in under a minute."""
    reads: list[float] = []
    products: dict[str, list[float]] = {"fp32": [], "bf16": [], "int8": []}
    rates: list[KernelRates] = []
    for done in range(ROUNDS):
        reads.append(_read_bytes_per_s(threads))
        for precision, rate in _products(threads).items():
            products[precision].append(rate)
        rates.append(
            measure_kernels(threads, lambda part, parts, done=done: progress(done * parts + part, ROUNDS * parts))
        )
    about = f"measured by tapwater {version('tapwater')}, median of {ROUNDS} rounds, {threads} threads"
    flops = {precision: median(each) for precision, each in products.items()}
    kernels = median_rates(rates)
    whole = _figure(1.0, "the peak above is itself what software reaches")
    # a multiplication of a prompt's attention, beside the products that roofline.py and training.py hold it against
    attention = _figure(2 / kernels.prompt_mac_s["grouped"] / flops["bf16"], f"{about}: attention of prompts")
    return Machine(
        name=name,
        description=f"{processor()}, {threads} threads",
        kind="cpu",
        devices=1,
        memory_bytes=_figure(memory_bytes(), "as the system says"),
        read_bytes_per_s=_figure(median(reads), about),
        flops_per_s={precision: _figure(rate, about) for precision, rate in flops.items()},
        efficiency=Efficiency(whole, whole, attention, catalogue_efficiency("cpu").network),
        usd_per_hour=rent,
        kernels=kernels,
    )


def median_rates(rounds: Sequence[KernelRates]) -> KernelRates:
    """Field by field the median of the rounds; `drift` is how far the speed of products differs between them."""
    values: dict[str, Any] = {}
    for field in fields(KernelRates):
        found = [getattr(each, field.name) for each in rounds]
        if isinstance(found[0], dict):
            values[field.name] = {key: _median([each[key] for each in found]) for key in found[0]}
        else:
            values[field.name] = _median(found) if isinstance(found[0], float) else found[0]
    sums = [sum(sum(times) for times in each.weight_s.values()) for each in rounds]
    return replace(rounds[0], **values | {"drift": max(sums) / min(sums) - 1})


def _median(values: Sequence[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(median(each) for each in zip(*values, strict=True))
    return median(values)


def processor() -> str:
    """The processor's name, with family and model where virtual machines hide it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in found.items()}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def memory_bytes() -> float:
    """Memory this process may use: the machine's, or less in a container with a limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    return float(min([total, *(int(limit) for limit in limits if limit.isdigit())]))


def _read_bytes_per_s(threads: int) -> float:
    memory = torch.ones(READ_BYTES, dtype=torch.uint8)
    kernels = Kernels(threads)
    seconds = least_seconds(lambda: kernels.read(memory), 4)
    kernels.close()
    return READ_BYTES / seconds


def _products(threads: int) -> dict[str, float]:
    """Operations per second: torch's products in float32 and bfloat16, our own with 8-bit weights and activations."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    operations = 2 * MATMUL**3
    rates = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rates[precision] = products_per_s(dtype, ((MATMUL, MATMUL, MATMUL),), 2)
    torch.set_num_threads(before)
    kernels = Kernels(threads)
    weight, x = random_matrix(Format.Q8, 1, MATMUL, MATMUL), torch.randn(MATMUL, MATMUL)
    rates["int8"] = operations / least_seconds(lambda: kernels.linear(x, weight), 2)
    kernels.close()
    return rates


def _figure(value: float, source: str) -> Figure:
    return Figure(value, source, date.today().isoformat())
