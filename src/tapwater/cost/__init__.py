"""What a model costs, from its configuration alone, and on a machine."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from tapwater.cost.training import (
        TrainingStep,
        step_decay,
        training_days,
        training_mfu,
        training_step,
        training_usd,
    )

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

# Each file is read when one of its names is first asked for (PEP 562): to start a verb, all of them take too long.
_FILE_OF = {
    "USABLE_SHARE": "memory",
    "Flops": "counts",
    "LayerParameters": "counts",
    "Memory": "memory",
    "Parameters": "counts",
    "Placement": "placement",
    "Recipe": "recipe",
    "Shard": "shards",
    "StepTraffic": "traffic",
    "TrainingStep": "training",
    "bubble_s": "pipeline",
    "expand_kv_elements": "counts",
    "expected_devices": "traffic",
    "expected_experts": "traffic",
    "expert_bytes": "collectives",
    "experts_per_device": "placement",
    "flops_per_token": "counts",
    "grouped_kv_elements": "counts",
    "largest_batch": "memory",
    "layer_parameters": "counts",
    "moe_paper_flops": "traffic",
    "parameters": "counts",
    "place_experts": "placement",
    "placement_of": "placement",
    "pooled_cache_tokens": "memory",
    "prefill_flops": "traffic",
    "serving_memory": "memory",
    "stage_layers": "shards",
    "stage_shards": "shards",
    "step_decay": "training",
    "step_traffic": "traffic",
    "training_days": "training",
    "training_flops_per_token": "counts",
    "training_memory": "memory",
    "training_mfu": "training",
    "training_step": "training",
    "training_usd": "training",
}


def __getattr__(name: str) -> object:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
