"""The operations models are made of. `reference` is their specification; native kernels take its place by name."""

from tapwater.ops.reference import (
    attention,
    experts,
    linear,
    linear_cross_entropy,
    paged_attention,
    paged_mla_absorb,
    paged_mla_expand,
    rms_norm,
    rotate_half,
    rotate_interleaved,
    store,
    swiglu,
)

__all__ = [
    "attention",
    "experts",
    "linear",
    "linear_cross_entropy",
    "paged_attention",
    "paged_mla_absorb",
    "paged_mla_expand",
    "rms_norm",
    "rotate_half",
    "rotate_interleaved",
    "store",
    "swiglu",
]
