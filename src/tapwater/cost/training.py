"""How long a training step takes and what a run costs, by roofline: each part at its machine's share of its peak.

Times are of a mean stage: stages are taken as equally loaded, experts as evenly chosen. Left out: sending activations
from stage to stage, evaluation, checkpoints, failures and restarts.
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from math import ceil

from tapwater.config import ModelConfig
from tapwater.cost.activations import BYTES, layers_saved
from tapwater.cost.checks import above_zero, at_least
from tapwater.cost.collectives import all_reduce_s, expert_exchange_s, gradient_exchange_s
from tapwater.cost.counts import flops_per_token, layer_parameters, training_flops_per_token
from tapwater.cost.formats import known, weight_bytes
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout
from tapwater.cost.memory import optimizer_bytes
from tapwater.cost.pipeline import bubble_s, device_stages
from tapwater.cost.recipe import Recipe, check_recipe
from tapwater.cost.shards import stage_shards

FORWARD_PASSES = 2  # each kept number is written once and read once
BACKWARD_PASSES = 3  # read again; its gradient written and read


@dataclass(frozen=True)
class TrainingStep:
    """Seconds of one step by what a device does in them; the parts add up to `step_s`.

    `mfu` is of the machine's bf16 peak, as reports count it, also when products are in fp8.
    """

    matmul_s: float
    attention_s: float
    activation_s: float  # reading and writing activations
    recomputation_s: float
    expert_exchange_s: float  # what no computation hides
    tensor_exchange_s: float
    bubble_s: float
    gradient_exchange_s: float
    optimizer_s: float
    tokens: int
    devices: int
    flops_per_token: float
    bf16_flops_per_s: float

    @property
    def by_part(self) -> dict[str, float]:
        """The parts' seconds."""
        return {name.removesuffix("_s"): value for name, value in vars(self).items() if name in PARTS}

    @property
    def step_s(self) -> float:
        return sum(self.by_part.values())

    @property
    def tokens_per_s_per_device(self) -> float:
        return self.tokens / self.step_s / self.devices

    @property
    def mfu(self) -> float:
        return self.tokens_per_s_per_device * self.flops_per_token / self.bf16_flops_per_s

    def device_hours(self, tokens: float) -> float:
        """Hours of all devices together to train on so many tokens; ConfigError unless there are some."""
        above_zero(tokens=tokens)
        return tokens / self.tokens_per_s_per_device / 3600

    def usd(self, tokens: float, usd_per_device_hour: Decimal) -> Decimal:
        """What that costs, in cents: time is rounded up to whole device-seconds and no float touches the price."""
        hours = Decimal(ceil(self.device_hours(tokens) * 3600)) / 3600
        return training_usd(hours, usd_per_device_hour).quantize(Decimal("0.01"), ROUND_HALF_UP)


PARTS = tuple(name for name in TrainingStep.__dataclass_fields__ if name.endswith("_s") and "flops" not in name)


def training_step(config: ModelConfig, machine: Machine, layout: Layout, recipe: Recipe) -> TrainingStep:
    """What one step takes on `layout.devices` of `machine`'s devices; ConfigError for what cannot be.

    Whether it fits is `training_memory`'s question.
    """
    check_recipe(recipe, config, layout)
    efficiency = machine.efficiency
    count = recipe.num_micro_batches(layout)
    tokens = recipe.micro_batch * recipe.sequence / layout.tp  # a device's share of a micro-batch's work
    stages = stage_shards(config, layout)
    fullest = max(stages, key=lambda each: each.weights)
    stages_held = len(device_stages(recipe.schedule, layout.pp)[0])
    computing = 1 - recipe.communication_share
    product_rate = computing * _peak(machine, recipe.precision) * efficiency.matmul.value
    attention_rate = computing * _peak(machine, "bf16") * efficiency.attention.value
    memory_rate = machine.read_bytes_per_s.value * efficiency.memory.value

    forward = flops_per_token(config, 1, absorbed=False)
    matmul = tokens * forward.matmul / layout.pp / product_rate
    matmul = max(matmul, weight_bytes(recipe.weight_format, fullest.weights) / memory_rate)
    attention = tokens * forward.attention * recipe.sequence / 2 / layout.pp / attention_rate
    kept = _kept_bytes(config, layout, recipe, "none") / memory_rate
    again = _recomputation_s(config, layout, recipe, matmul, attention, product_rate, memory_rate)

    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)) / layout.pp
    exchange = moe_layers * expert_exchange_s(config, machine, layout, recipe, tokens) if moe_layers else 0.0
    hidden = _hidden_s(config, recipe, tokens / layout.pp / product_rate, matmul + attention)
    waits = max(exchange - hidden, 0.0), max(exchange - 2 * hidden, 0.0)  # forward, backward
    reduced = 2 * recipe.micro_batch * recipe.sequence * config.hidden_size * config.num_hidden_layers / layout.pp
    tensor = all_reduce_s(machine, layout.tp, 2 * reduced)  # one direction: after attention and after feed-forward

    forward_s = matmul + attention + FORWARD_PASSES * kept + waits[0] + tensor
    backward_s = 2 * (matmul + attention) + BACKWARD_PASSES * kept + again + waits[1] + tensor
    bubble = bubble_s(recipe.schedule, layout.pp, forward_s=forward_s, backward_s=backward_s, weight_s=matmul)
    return TrainingStep(
        matmul_s=3 * matmul * count,
        attention_s=3 * attention * count,
        activation_s=(FORWARD_PASSES + BACKWARD_PASSES) * kept * count,
        recomputation_s=again * count,
        expert_exchange_s=sum(waits) * count,
        tensor_exchange_s=2 * tensor * count,
        bubble_s=bubble,
        gradient_exchange_s=stages_held * gradient_exchange_s(machine, layout, recipe, fullest),
        # state and gradients are read, state and weights written
        optimizer_s=2 * max(optimizer_bytes(each, layout, recipe.optimizer) for each in stages) / memory_rate,
        tokens=recipe.tokens,
        devices=layout.devices,
        flops_per_token=training_flops_per_token(config, recipe.sequence).total,
        bf16_flops_per_s=_peak(machine, "bf16"),
    )


def training_usd(device_hours: Decimal, usd_per_device_hour: Decimal) -> Decimal:
    """What so many device-hours cost; ConfigError if one of them is negative."""
    at_least(0, device_hours=device_hours, usd_per_device_hour=usd_per_device_hour)
    return device_hours * usd_per_device_hour


def training_days(device_hours: float, devices: int) -> float:
    """Days that so many device-hours take on `devices` devices; ConfigError for fewer than one."""
    at_least(1, devices=devices)
    at_least(0, device_hours=device_hours)
    return device_hours / devices / 24


def training_mfu(config: ModelConfig, *, sequence: int, tokens: float, device_hours: float, peak: float) -> float:
    """The share of `peak` FLOPs per second and device that a reported training time amounts to, attention causal."""
    above_zero(sequence=sequence, tokens=tokens, device_hours=device_hours, peak=peak)
    return training_flops_per_token(config, sequence).total * tokens / (device_hours * 3600) / peak


def step_decay(max_lr: float, times: int, factor: float = 0.316) -> float:
    """The learning rate after `times` drops by `factor`; V2 drops at 60% and 90% (report section 3.1.2)."""
    at_least(0, times=times)
    above_zero(max_lr=max_lr, factor=factor)
    return max_lr * factor**times


def _peak(machine: Machine, precision: str) -> float:
    return known(precision, machine.flops_per_s, f"rate of {machine.name} for precision").value


def _kept_bytes(config: ModelConfig, layout: Layout, recipe: Recipe, recomputation: str) -> float:
    """Bytes of a micro-batch's activations on a device of a mean stage."""
    elements = layers_saved(config, range(config.num_hidden_layers), recomputation, layout.tp)
    return BYTES * recipe.micro_batch * recipe.sequence * elements / layout.pp


def _recomputation_s(
    config: ModelConfig,
    layout: Layout,
    recipe: Recipe,
    matmul_s: float,
    attention_s: float,
    product_rate: float,
    memory_rate: float,
) -> float:
    """Seconds per micro-batch and stage of computing again what was not kept."""
    if recipe.recomputation == "none":
        return 0.0
    lost = _kept_bytes(config, layout, recipe, "none") - _kept_bytes(config, layout, recipe, recipe.recomputation)
    moved = FORWARD_PASSES * lost / memory_rate
    tokens = recipe.micro_batch * recipe.sequence / layout.tp
    if recipe.recomputation == "full":
        head = 2 * tokens * config.vocab_size * config.hidden_size / layout.pp / product_rate
        return moved + matmul_s - head + attention_s
    if not config.is_mla:
        return moved
    mla = config.mla
    query = (config.q_lora_rank or 0) * config.num_attention_heads * config.qk_head_dim
    up = query + mla.kv_lora_rank * config.num_attention_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    return moved + 2 * tokens * up * config.num_hidden_layers / layout.pp / product_rate


def _hidden_s(config: ModelConfig, recipe: Recipe, s_per_flop: float, compute_s: float) -> float:
    """How much expert exchange of one forward hides behind computation; a backward computes, and so hides, twice."""
    match recipe.overlap:
        case "none":
            return 0.0
        case "all":
            return compute_s
    layers = range(config.num_hidden_layers)
    shared = sum(layer_parameters(config, layer).feed_forward for layer in layers if config.is_moe_layer(layer))
    return 2 * shared * s_per_flop
