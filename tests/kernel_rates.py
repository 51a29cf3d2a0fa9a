"""Rates of kernels as a machine might measure them, round enough to reckon with."""

from dataclasses import replace

from tapwater.cost.hardware import Machine, machine
from tapwater.cost.kernel_rates import KernelRates

RATES = KernelRates(
    instruction_set="avx512",
    threads=2,
    rows=(1, 8, 512),
    weight_s={"q4": (4e-11, 6e-11, 3e-9), "q8": (6e-11, 8e-11, 3e-9)},
    heads=(1, 4, 16, 64),
    grouped_s={"bfloat16": (2e-10, 3.5e-10, 6e-10, 14e-10)},
    absorbed_s={"bfloat16": (3e-10, 4e-10, 7e-10, 20e-10)},
    attend_s=4e-6,
    prompt_mac_s={"grouped": 1.5e-11, "expanded": 1.4e-11},
    row_s=9e-9,
    layer_s=1e-5,
    expert_s=2e-6,
    logit_s=2e-9,
    step_s=7e-5,
    request_s=2e-5,
    max_context=8192,
    drift=0.1,
)


def measured() -> Machine:
    return replace(machine("cpu-2vcpu"), name="measured", kernels=RATES)
