"""Whether a model fits: bytes on the fullest device, in serving and in training."""

from dataclasses import dataclass, fields

from tapwater.config import ModelConfig
from tapwater.cost.activations import layers_saved, saved_elements
from tapwater.cost.checks import above_zero, at_least
from tapwater.cost.counts import parameters
from tapwater.cost.formats import Formats, cache_bytes_per_token, mean_weight_bits, weight_bytes
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout
from tapwater.cost.pipeline import device_stages, in_flight
from tapwater.cost.recipe import OPTIMIZER_BYTES, PRECISIONS, Recipe, check_recipe
from tapwater.cost.shards import Shard, stage_shards
from tapwater.errors import ConfigError

# Our rule, not a measurement: of a device's memory a tenth is left to the runtime, to communication buffers, to
# fragmentation and, in serving, to the activations of one step.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose on the device that holds the most; `fits` by the rule of USABLE_SHARE."""

    weights_bytes: float
    cache_bytes: float
    activation_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    device_bytes: float

    @property
    def by_part(self) -> dict[str, float]:
        """The purposes, which add up to `total_bytes`."""
        names = [field.name for field in fields(self) if field.name != "device_bytes"]
        return {name.removesuffix("_bytes"): getattr(self, name) for name in names}

    @property
    def total_bytes(self) -> float:
        return sum(self.by_part.values())

    @property
    def usable_bytes(self) -> float:
        return USABLE_SHARE * self.device_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.usable_bytes


def serving_memory(
    config: ModelConfig,
    machine: Machine,
    layout: Layout,
    *,
    requests: int,
    context: int,
    formats: Formats,
) -> Memory:
    """Memory of serving `requests` at once, `context` tokens each, spread evenly over dp replicas.

    ConfigError for an impossible layout, or a context the model does not have.
    """
    _check_context(config, context)
    at_least(0, requests=requests)
    per_replica = -(-requests // layout.dp)
    found = []
    weight_bits = mean_weight_bits(config, formats)
    for shard in stage_shards(config, layout):
        cached = per_replica * context * _cache_per_token(config, shard, layout, formats.cache)
        weights = weight_bits / 8 * shard.weights
        found.append(Memory(weights, cached, 0.0, 0.0, 0.0, machine.memory_bytes.value))
    return max(found, key=lambda each: each.total_bytes)


def largest_batch(config: ModelConfig, machine: Machine, layout: Layout, *, context: int, formats: Formats) -> int:
    """Most requests of `context` tokens that fit at once on the whole layout; 0 when not even one per replica does."""
    _check_context(config, context)
    usable = USABLE_SHARE * machine.memory_bytes.value
    weight_bits = mean_weight_bits(config, formats)
    fewest = min(
        (usable - weight_bits / 8 * shard.weights) // (context * _cache_per_token(config, shard, layout, formats.cache))
        for shard in stage_shards(config, layout)
    )
    return max(int(fewest), 0) * layout.dp


def pooled_cache_tokens(config: ModelConfig, memory_bytes: float, formats: Formats) -> int:
    """Tokens of cache that fit if `memory_bytes` of all devices were one and nothing were copied: no layout holds more.

    0 when the weights alone do not fit.
    """
    above_zero(memory_bytes=memory_bytes)
    left = USABLE_SHARE * memory_bytes - mean_weight_bits(config, formats) / 8 * parameters(config).total
    return max(int(left // cache_bytes_per_token(config, formats.cache)), 0)


def training_memory(config: ModelConfig, machine: Machine, layout: Layout, recipe: Recipe) -> Memory:
    """Memory of training: weights, gradients, the optimizer's share under ZeRO-1, activations in flight.

    ZeRO-1 divides master weights and moments by how many devices hold the same weights: dp, for routed experts
    dp * tp / ep. Activations by `activations.py` in the precision's bytes, in flight by the schedule; the last stage
    adds one micro-batch's logits in float32. ConfigError for a recipe that cannot be.
    """
    check_recipe(recipe, config, layout)
    stages = stage_shards(config, layout)
    tokens = recipe.micro_batch * recipe.sequence
    found = []
    for held in device_stages(recipe.schedule, layout.pp):
        weights = sum(stages[stage].weights for stage in held)
        activations = sum(
            in_flight(recipe.schedule, stage, layout.pp)
            * layers_saved(config, stages[stage].layers, recipe.recomputation, layout.tp)
            for stage in held
        )
        activations = PRECISIONS[recipe.precision] * tokens * (activations + _computed_again(config, recipe, layout))
        if layout.pp - 1 in held:
            activations += 4 * tokens * config.vocab_size / layout.tp
        found.append(
            Memory(
                weights_bytes=weight_bytes(recipe.weight_format, weights),
                cache_bytes=0.0,
                activation_bytes=activations,
                gradient_bytes=weight_bytes(recipe.gradient_format, weights),
                # a stage that dualpipe holds twice has twice the devices to share its state
                optimizer_bytes=sum(optimizer_bytes(stages[stage], layout, recipe.optimizer) for stage in held)
                / len(held),
                device_bytes=machine.memory_bytes.value,
            )
        )
    return max(found, key=lambda each: each.total_bytes)


def optimizer_bytes(shard: Shard, layout: Layout, optimizer: str) -> float:
    """A device's part of master weights and moments of a stage under ZeRO-1."""
    experts_held = layout.dp * layout.tp / layout.ep
    return OPTIMIZER_BYTES[optimizer] * (shard.dense / layout.dp + shard.routed / experts_held)


def _computed_again(config: ModelConfig, recipe: Recipe, layout: Layout) -> float:
    """Numbers per token of the one layer whose activations exist a second time."""
    if recipe.recomputation == "none":
        return 0.0
    return max(saved_elements(config, layer, "none", layout.tp) for layer in range(config.num_hidden_layers))


def _cache_per_token(config: ModelConfig, shard: Shard, layout: Layout, cache_format: str) -> float:
    """Bytes on one device; grouped attention splits its heads over tp, MLA's latent is on every device."""
    share = 1.0
    if not config.is_mla:
        heads = config.num_key_value_heads
        share = -(-heads // layout.tp) / heads
    return cache_bytes_per_token(config, cache_format) * share * len(shard.layers) / config.num_hidden_layers


def _check_context(config: ModelConfig, context: int) -> None:
    if not 1 <= context <= config.max_position_embeddings:
        raise ConfigError(f"context must be between 1 and the model's {config.max_position_embeddings}, got {context}")
