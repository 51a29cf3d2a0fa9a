"""Whether a run fits into memory: an estimate of what it takes, against what is free."""

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch

from tapwater.config import ModelConfig, PretrainConfig
from tapwater.cost.counts import parameters
from tapwater.cost.hardware import machine
from tapwater.cost.layout import Layout
from tapwater.cost.memory import training_memory
from tapwater.cost.recipe import Recipe
from tapwater.cost.shards import stage_shards
from tapwater.errors import ConfigError
from tapwater.ops.gradients_loss import CHUNK_BYTES
from tapwater.parallel import World
from tapwater.train.allocator import give_back_memory
from tapwater.train.probe import Precision

GB = 1e9
MOMENTS_BYTES = {"adamw": 8, "muon": 4}  # of a weight
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Needed:
    """Bytes of the fullest process: where it trains, and beside that in the memory of its machine."""

    training: float
    saving: float


def check_memory(config: PretrainConfig, precision: Precision, world: World) -> None:
    """ConfigError, with the numbers, when a process will not fit into its share of the memory that is free."""
    needed, free = needed_bytes(config, precision, world), free_bytes() / world.local_processes
    advice = "lower batch.micro_sequences or data.sequence_length, set train.recomputation, or train a smaller model"
    if world.device.type == "cuda":
        on_device = float(torch.cuda.mem_get_info(world.device)[0])
        _compare("the run needs", needed.training, "on the GPU of each process", on_device, advice)
        _compare(
            "saving it needs", needed.saving, "for each process", free, "train a smaller model, or on more machines"
        )
    else:
        _compare("the run needs", needed.training + needed.saving, "in each process", free, advice)


def fits(config: PretrainConfig, precision: Precision, world: World) -> bool:
    """Whether `check_memory` would let it pass."""
    try:
        check_memory(config, precision, world)
    except ConfigError:
        return False
    return True


def check_trial(trial: ModelConfig, config: PretrainConfig) -> None:
    """ConfigError when the few layers that precisions are tried on do not fit beside each other in both."""
    weights = parameters(trial).total
    kept = replace(config, train=replace(config.train, recomputation="none"))
    # float32: weights, gradients; bf16: copies with their gradients, masters, sums of gradients; one computes at a time
    needed = (8 + 12) * weights + _activations(trial, kept, Layout(), "float32", "cpu")
    _compare("trying which precision is faster needs", needed, "at once", free_bytes(), "set train.precision")


def needed_bytes(config: PretrainConfig, precision: Precision, world: World) -> Needed:
    """What a run takes: weights, gradients, moments, what the backward pass reads, and the copy that is being saved.

    An estimate of tensors. The first process's export at the end, all weights in float32, comes when no copy is being
    saved; its bytes are shared out over the processes of that machine, whose memory it is.
    """
    section, model = config.parallel, config.model
    layout = Layout(dp=section.dp, ep=section.ep, pp=section.pp)
    ahead = parameters(model).mtp  # a pipeline refuses them, so they are the only stage's
    stages = [(each.dense + ahead, each.routed) for each in stage_shards(model, layout)]
    own = max(dense / section.dp + routed * section.ep / section.dp for dense, routed in stages)
    saved = (4 + MOMENTS_BYTES[config.optimizer.name]) * own
    if config.optimizer.name == "muon":  # AdamW has the tables of tokens, with a second moment
        saved += 2 * 4 * model.vocab_size * model.hidden_size / section.dp
    computed = max(_copies(config, precision, dense, routed) for dense, routed in stages)
    activations = _activations(model, config, layout, precision, world.device.type)
    export = 4 * (parameters(model).total + ahead) / world.local_processes if world.rank < world.local_processes else 0
    return Needed(saved + computed + activations, max(saved, export))


def _copies(config: PretrainConfig, precision: Precision, dense: float, routed: float) -> float:
    """Bytes of a stage's weights and gradients besides the float32 weights that the optimizer moves."""
    section, number = config.parallel, 2 if precision == "bf16" else 4
    whole = routed if section.ep == section.dp else 0.0  # held by one process alone
    spread = dense + routed - whole
    if section.dp == 1:
        whole, spread = whole + spread, 0.0
    copies = 8 * whole if precision == "bf16" else 4 * whole  # numbers and gradients of 2 bytes, sums of 4; sums alone
    one_batch = config.batch.sequences == config.batch.micro_sequences * section.dp
    sums = spread / section.dp if one_batch else spread  # between micro-batches a process keeps its own, whole
    at_once = spread
    if section.pp == 1:  # gathered block by block; embedding and head stay
        tables = 2 * config.model.vocab_size * config.model.hidden_size
        at_once = min(spread, tables + 2 * spread / config.model.num_hidden_layers)
    return copies + 4 * sums + 2 * number * at_once


def _activations(
    model: ModelConfig, config: PretrainConfig, layout: Layout, precision: Precision, device: str
) -> float:
    tokens = config.batch.micro_sequences * config.data.sequence_length
    recipe = Recipe(
        sequence=config.data.sequence_length,
        batch=config.batch.micro_sequences * layout.dp * layout.pp,
        micro_batch=config.batch.micro_sequences,
        schedule="1f1b",
        recomputation=config.train.recomputation,
    )
    # any machine will do: what is asked is only how much, not whether it fits there
    found = training_memory(model, machine("xeon-2vcpu"), layout, recipe).activation_bytes
    logits = 4 * tokens * model.vocab_size
    if layout.pp == 1:
        found -= logits
    found *= (4 if precision == "float32" else 2) / 2 * (1 + model.num_nextn_predict_layers / model.num_hidden_layers)
    return found + (min(logits, CHUNK_BYTES) if device == "cpu" else logits)


def _compare(what: str, needed: float, where: str, free: float, advice: str) -> None:
    if needed > free:
        raise ConfigError(f"{what} about {needed / GB:.1f} GB {where} and {free / GB:.1f} GB are free for it; {advice}")


def free_bytes() -> float:
    """Bytes of memory that programs can still get on this machine, or in the control group that they are kept in.

    What this process has freed and kept counts, since it is given back first.
    """
    give_back_memory()
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
