"""The model's state over all processes, as pieces that know their place."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from tapwater.model import Transformer
from tapwater.model.moe import Experts
from tapwater.parallel.build import expert_shard_dim
from tapwater.parallel.gradients import local
from tapwater.parallel.mesh import World


def as_pieces(model: Transformer, world: World, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that belong to parameters, by the parameters' names, as pieces that know their place: sharing memory.

    What is whole here, or of another shape than its parameter, stays as it is.
    """
    places = _divided_experts(model, world)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if name in places}
    return {
        name: _placed(each, world, places[name]) if name in places and each.shape == shapes[name] else each
        for name, each in tensors.items()
    }


def _divided_experts(model: nn.Module, world: World) -> dict[str, int]:
    """Names of the parameters that ep has divided, and the dimension their replicas share."""
    if world.meshes is None or world.section.ep == 1:
        return {}
    replicas = world.section.dp // world.section.ep
    return {
        f"{prefix}.{name}": expert_shard_dim(module, replicas)
        for prefix, module in model.named_modules()
        if isinstance(module, Experts)
        for name, _ in module.named_parameters()
    }


def _placed(tensor: Tensor, world: World, dim: int) -> DTensor:
    """This process's experts as a piece of all of the layer's: by ep first, then by the replicas that share them."""
    assert world.meshes is not None
    shape = list(tensor.shape)  # of a DTensor: with all replicas
    shape[0] *= world.section.ep
    mesh = world.meshes.experts["ep", "edp"]
    size = torch.Size(shape)
    stride = torch.empty(size, device="meta").stride()
    placements = [Shard(0), Shard(dim)]
    return DTensor.from_local(local(tensor), mesh, placements, run_check=False, shape=size, stride=stride)
