"""Initial weights."""

import torch
from torch import nn

from tapwater.model.layers import RMSNorm


@torch.no_grad()
def initialise(model: nn.Module, std: float, generator: torch.Generator) -> None:
    """Every weight N(0, std) (report section 3.1.2: std 0.006), norms 1, routing bias 0; in the parameters' own order,
    so that one seed gives one model."""
    norms = {id(module.weight) for module in model.modules() if isinstance(module, RMSNorm)}
    for parameter in model.parameters():
        if id(parameter) in norms:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, std, generator=generator)
    for buffer in model.buffers():
        buffer.zero_()
