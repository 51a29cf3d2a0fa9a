"""Initial weights."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tapwater.model.layers import RMSNorm


def initial_weights(model: nn.Module, std: float, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Names and float32 values of a fresh model's parameters and buffers: N(0, std) (report section 3.1.2: std 0.006),
    norms 1, routing bias 0; in the parameters' own order, so that one seed gives one model.

    Only names and shapes of `model` are looked at, so that it may be on the meta device.
    """
    norms = {id(module.weight) for module in model.modules() if isinstance(module, RMSNorm)}
    for name, parameter in model.named_parameters():
        if id(parameter) in norms:
            yield name, torch.ones(parameter.shape)
        else:
            yield name, torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
    for name, buffer in model.named_buffers():
        yield name, torch.zeros(buffer.shape)


@torch.no_grad()
def initialise(model: nn.Module, std: float, generator: torch.Generator) -> None:
    """Give every parameter and buffer its initial value."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in initial_weights(model, std, generator):
        tensors[name].copy_(value)
