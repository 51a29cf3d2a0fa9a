"""What a model costs, from its configuration alone."""

from tapwater.cost.counts import (
    Flops,
    Parameters,
    expand_kv_elements,
    flops_per_token,
    grouped_kv_elements,
    parameters,
    training_flops_per_token,
)

__all__ = [
    "Flops",
    "Parameters",
    "expand_kv_elements",
    "flops_per_token",
    "grouped_kv_elements",
    "parameters",
    "training_flops_per_token",
]
