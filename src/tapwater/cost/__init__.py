"""What a model costs, from its configuration alone, and on a machine."""

from tapwater.cost.collectives import expert_bytes
from tapwater.cost.counts import (
    Flops,
    LayerParameters,
    Parameters,
    expand_kv_elements,
    flops_per_token,
    grouped_kv_elements,
    layer_parameters,
    parameters,
    training_flops_per_token,
)
from tapwater.cost.memory import (
    USABLE_SHARE,
    Memory,
    largest_batch,
    pooled_cache_tokens,
    serving_memory,
    training_memory,
)
from tapwater.cost.pipeline import bubble_s
from tapwater.cost.placement import Placement, experts_per_device, place_experts, placement_of
from tapwater.cost.recipe import Recipe
from tapwater.cost.shards import Shard, stage_layers, stage_shards
from tapwater.cost.traffic import (
    StepTraffic,
    expected_devices,
    expected_experts,
    moe_paper_flops,
    prefill_flops,
    step_traffic,
)
from tapwater.cost.training import TrainingStep, step_decay, training_days, training_mfu, training_step, training_usd

__all__ = [
    "USABLE_SHARE",
    "Flops",
    "LayerParameters",
    "Memory",
    "Parameters",
    "Placement",
    "Recipe",
    "Shard",
    "StepTraffic",
    "TrainingStep",
    "bubble_s",
    "expand_kv_elements",
    "expected_devices",
    "expected_experts",
    "expert_bytes",
    "experts_per_device",
    "flops_per_token",
    "grouped_kv_elements",
    "largest_batch",
    "layer_parameters",
    "moe_paper_flops",
    "parameters",
    "place_experts",
    "placement_of",
    "pooled_cache_tokens",
    "prefill_flops",
    "serving_memory",
    "stage_layers",
    "stage_shards",
    "step_decay",
    "step_traffic",
    "training_days",
    "training_flops_per_token",
    "training_memory",
    "training_mfu",
    "training_step",
    "training_usd",
]
