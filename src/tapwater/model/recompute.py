"""What the backward pass computes again instead of keeping (report section 3.1.3; V3 report section 3.2.3)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import tapwater.ops  # noqa: F401 - its attention is an op of torch's

Recomputation = Literal["none", "selective", "full"]

# Attention itself is kept: it is what costs most to compute again, and its output is small.
KEPT = (
    torch.ops.tapwater.attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)


def run_again(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), of which the backward pass has the arguments alone."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def run_again_but_attention(function: Callable[..., Any], *arguments: Any) -> Any:
    """The same, with what attention ops gave kept too."""
    return checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=_keeping_attention
    )


def _keeping_attention() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
