"""What a training step does between backward and optimizer, on any mesh."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tapwater.parallel.mesh import World


def sum_after_backward(model: nn.Module, is_last: bool) -> None:
    """Tell the coming backward pass whether gradients are summed over dp after it: after a step's last micro-batch.

    Until then a process keeps its own sums, whole. Where nothing is sharded there is nothing to tell.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)


def reshard(model: nn.Module) -> None:
    """Forget whole weights that a forward pass has left behind; to be called when other ones were loaded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor], max_norm: float, world: World, known: Mapping[Tensor, Tensor] | None = None
) -> float:
    """Scale all gradients so that their norm over the whole model is at most `max_norm`; returns the norm before.

    Every number of a gradient is held by exactly one process (dense weights are spread over dp, experts over ep and
    their replicas, layers over pp), so the squares of all processes add up. `known` are sums of squares of some
    parameters' gradients.
    """
    known = known or {}
    gradients: list[Tensor] = []
    squares = torch.zeros((), dtype=torch.float64, device=world.device)
    for parameter in parameters:
        if parameter.grad is None:
            continue
        gradient = local(parameter.grad)
        gradients.append(gradient)
        if parameter in known:
            squares += known[parameter]
        else:
            squares += torch.linalg.vector_norm(gradient, dtype=torch.float32).double() ** 2
    norm = float(world.sum_all(squares).sqrt())
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def by_mesh(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The same parameters in groups that one fused or foreach optimizer call can take: a call knows one mesh only.

    Dense weights and experts are sharded over different processes; experts may be on none.
    """
    groups: dict[DeviceMesh | None, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return list(groups.values())


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
