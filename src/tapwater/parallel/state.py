"""The model's state over all processes: whole on the first one, or as pieces that know their place."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer

from tapwater.model import Transformer
from tapwater.model.moe import Experts
from tapwater.parallel.build import expert_shard_dim
from tapwater.parallel.gradients import local
from tapwater.parallel.mesh import World


def sharded_state(model: Transformer, world: World, optimizer: Optimizer | None = None) -> dict[str, Tensor]:
    """What this process holds, for torch.distributed.checkpoint: "model.<name>" and "optimizer.<name>.<key>".

    Names are those of a single process; pieces are DTensors of the whole shape, so that what one mesh writes another
    reads. They are the tensors themselves, not copies: reading into them restores model and optimizer. An optimizer
    has a state after its first step only.
    """
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}  # its hooks put shards in place
    experts = _divided_experts(model, world)
    for name, parameter in model.named_parameters():
        place = experts.get(name)
        if place is not None:
            state[f"model.{name}"] = _placed(parameter.detach(), world, place)
        held: dict[str, Any] = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key, value in held.items():
            if place is not None and isinstance(value, Tensor) and value.shape == parameter.shape:
                value = _placed(value, world, place)
            state[f"optimizer.{name}.{key}"] = value
    return state


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


@torch.no_grad()
def full_parameters(model: Transformer, world: World) -> dict[str, Tensor]:
    """All weights and routing biases, by single-process names, on the first process's CPU; others get an empty dict.

    Every process must call it; no other holds more than one whole tensor at a time.
    """
    mine = {name.removeprefix("model."): tensor for name, tensor in sharded_state(model, world).items()}
    if world.meshes is None:
        return {name: tensor.cpu() for name, tensor in mine.items()}
    kinds: list[Any] = [None] * world.size
    dist.all_gather_object(kinds, {name: (tuple(each.shape), each.dtype) for name, each in mine.items()})
    with torch.device("meta"):
        order = list(Transformer(model.config).state_dict())
    found: dict[str, Tensor] = {}
    for name in order:
        owner = next(rank for rank, names in enumerate(kinds) if name in names)
        whole = None
        if name in mine:
            whole = _whole(mine[name])
        if owner != 0 and world.rank == owner and whole is not None:
            dist.send(whole.contiguous(), dst=0)
        if world.is_first:
            if whole is None:
                shape, dtype = kinds[owner][name]
                whole = torch.empty(shape, dtype=dtype, device=world.device)
                dist.recv(whole, src=owner)
            found[name] = whole.to("cpu", copy=True)
    return found


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    for dim in reversed(range(1, tensor.device_mesh.ndim)):  # one dimension at a time, innermost first
        placements = [Replicate() if place >= dim else each for place, each in enumerate(tensor.placements)]
        tensor = tensor.redistribute(placements=placements)
    return tensor.full_tensor()


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
