"""Which formats and layouts are worth trying on a machine when nobody says."""

from collections.abc import Iterator

from tapwater.config import ModelConfig
from tapwater.cost.formats import WEIGHT_PRECISION, Formats
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout, check_layout
from tapwater.errors import ConfigError

CPU_CHUNK, GPU_CHUNK = 512, 8192  # prompt tokens computed at once: the engine's default, and what fills an accelerator
NODES = (1, 2, 4, 8, 16, 18, 32, 40)


def default_formats(
    machine: Machine, weights: str | None = None, cache: str | None = None, head: str | None = None
) -> Formats:
    """What is served where nothing is said: on a CPU our four bits, elsewhere fp8 if the machine has it, else bf16.

    A CPU without a rate for int8 gets bf16 or fp32, whichever it has.
    """
    wanted = ("q4_min", "bf16", "float32") if machine.kind == "cpu" else ("fp8", "bf16", "float32")
    if machine.kernels is not None:
        found = "q4_min"
    else:
        found = next(each for each in wanted if WEIGHT_PRECISION[each] in machine.flops_per_s)
    return Formats(weights or found, cache or "bfloat16", head)


def chunk_tokens(machine: Machine) -> int:
    """Prompt tokens that the machine computes at once."""
    return CPU_CHUNK if machine.kind == "cpu" else GPU_CHUNK


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
                layout = Layout(dp=devices // (pp * tp), tp=tp, ep=devices // pp if config.is_moe else 1, pp=pp)
                try:
                    check_layout(layout, config)
                except ConfigError:  # of the candidates only, never of what a user asked for
                    continue
                yield layout


def _device_counts(devices: int, max_nodes: int) -> list[int]:
    within = [2**power for power in range(devices.bit_length()) if 2**power < devices]
    nodes = [node for node in NODES if node < max_nodes] + [max_nodes]
    return within + [node * devices for node in nodes]
