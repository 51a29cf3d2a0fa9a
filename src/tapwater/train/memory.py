"""Whether a run fits into memory: an estimate of what it takes, against what is free."""

from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch

from tapwater.config import ModelConfig, PretrainConfig
from tapwater.cost.counts import parameters
from tapwater.cost.hardware import machine
from tapwater.cost.layout import Layout
from tapwater.cost.memory import Memory, training_memory
from tapwater.cost.recipe import OPTIMIZER_BYTES, Recipe
from tapwater.errors import ConfigError
from tapwater.parallel import World
from tapwater.train.probe import PRECISIONS, Precision

GB = 1e9
PROGRAM_BYTES = 0.5e9  # libraries and the corpus's index
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Needed:
    """Bytes of the fullest process: where it trains, and beside that in the memory of its machine."""

    training: float
    saving: float


def check_memory(config: PretrainConfig, precision: Precision, world: World) -> None:
    """ConfigError, with the numbers, when a process will not fit into its share of the memory that is free."""
    needed = needed_bytes(config, precision, world.local_processes)
    free = free_bytes() / world.local_processes
    advice = "batch.micro_sequences or data.sequence_length, set train.recomputation, or train a smaller model"
    if world.device.type == "cuda":
        on_device = float(torch.cuda.mem_get_info(world.device)[0])
        _compare(needed.training, on_device, "on its GPU", advice)
        _compare(needed.saving, free, "to save its state beside it", "the number of processes on a machine")
    else:
        _compare(needed.training + needed.saving, free, "", advice)


def check_trial(trial: ModelConfig, config: PretrainConfig) -> None:
    """ConfigError when the few layers that precisions are tried on do not fit into one process, in both at once."""
    weights = parameters(trial).total
    # float32: weights, gradients; bf16: copies with their gradients, masters, sums of gradients
    needed = (8 + 12) * weights + 3 * _training_memory(trial, config, Layout(), "bf16").activation_bytes
    _compare(
        needed + PROGRAM_BYTES, free_bytes(), "to try which precision is faster", 'train.precision: set it to "bf16"'
    )


def least_precision(config: PretrainConfig, world: World) -> Precision:
    """The precision that takes less memory."""

    def total(precision: Precision) -> float:
        needed = needed_bytes(config, precision, world.local_processes)
        return needed.training + needed.saving

    return min(PRECISIONS, key=total)


def needed_bytes(config: PretrainConfig, precision: Precision, local_processes: int) -> Needed:
    """What a run takes: weights, gradients, moments, what the backward pass reads, and the copy that is being saved.

    An estimate of tensors, and from above where weights are spread over dp: they are counted whole. The first process's
    export at the end, all weights in float32, comes when no copy is being saved; its bytes are shared out over the
    processes of a machine, whose memory it is.
    """
    layout = Layout(dp=config.parallel.dp, ep=config.parallel.ep, pp=config.parallel.pp)
    found = _training_memory(config.model, config, layout, precision)
    own = found.optimizer_bytes / OPTIMIZER_BYTES[config.optimizer.name]  # weights whose moments it has
    state = found.optimizer_bytes
    if config.optimizer.name == "muon":  # AdamW has the tables of tokens, with a second moment
        state += 2 * 4 * config.model.vocab_size * config.model.hidden_size / config.parallel.dp
    activations = found.activation_bytes
    if precision == "float32":
        masters = -4 * own  # they are the weights themselves
        activations *= 2
    else:
        masters = found.weights_bytes  # the copies' own gradients, of a micro-batch
    training = found.weights_bytes + found.gradient_bytes + state + activations + masters
    export = 4 * parameters(config.model).total / local_processes
    return Needed(training, max(state, export) + PROGRAM_BYTES)


def _training_memory(model: ModelConfig, config: PretrainConfig, layout: Layout, precision: Precision) -> Memory:
    recipe = Recipe(
        sequence=config.data.sequence_length,
        batch=config.batch.micro_sequences * layout.dp * max(1, layout.pp),
        micro_batch=config.batch.micro_sequences,
        schedule="1f1b",
        recomputation=config.train.recomputation,
        optimizer=config.optimizer.name,
        weight_format="float32" if precision == "float32" else "bf16",
        gradient_format="float32",
    )
    # any machine will do: what is asked is only how much, not whether it fits there
    return training_memory(model, machine("xeon-2vcpu"), layout, recipe)


def _compare(needed: float, free: float, what: str, lower: str) -> None:
    if needed > free:
        purpose = f" {what}" if what else ""
        raise ConfigError(
            f"the run needs about {needed / GB:.1f} GB{purpose} in each process and {free / GB:.1f} GB are free for "
            f"it; lower {lower}"
        )


def free_bytes() -> float:
    """Bytes of memory that programs can still get on this machine, or in the control group that they are kept in."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return inf  # a system that does not say so refuses by itself
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return min(float(lines["MemAvailable"].split()[0]) * 1024, group_free_bytes(CGROUP))


def group_free_bytes(cgroup: Path) -> float:
    """What a Linux control group (version 2, else 1) still allows, cached files count as free; inf without a limit."""
    names = (("memory.max", "memory.current", "memory.stat"),
             ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"))  # fmt: skip
    for limit, used, stat in ([cgroup / name for name in each] for each in names):
        if limit.is_file() and used.is_file() and stat.is_file():
            text = limit.read_text().strip()
            if text == "max":
                return inf
            parts = dict(line.split() for line in stat.read_text().splitlines())
            cached = int(parts["active_file"]) + int(parts["inactive_file"])
            return float(int(text) - int(used.read_text()) + cached)
    return inf
