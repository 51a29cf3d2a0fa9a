"""A process's part of the model: its stages' layers, its experts, and its share of every weight's rows."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from tapwater.config import ModelConfig
from tapwater.errors import ConfigError, TrainingError
from tapwater.model import Transformer
from tapwater.model.init import initial_weights
from tapwater.model.moe import Experts, MoE, local_dispatch
from tapwater.model.transformer import Block
from tapwater.parallel.dispatch import all_to_all_dispatch
from tapwater.parallel.mesh import Meshes, World
from tapwater.parallel.split import stage_layers, stages_of


def random_weights(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Names and values of `Transformer.random(config, seed)`, one tensor at a time."""
    with torch.device("meta"):
        model = Transformer(config)
    return initial_weights(model, config.initializer_range, torch.Generator().manual_seed(seed))


def part_of_model(config: ModelConfig, world: World, weights: Iterable[tuple[str, Tensor]]) -> Transformer:
    """The Transformer of which this process holds a part; `weights` are whole, by single-process names, in any order.

    With ep its experts are those of this process. With pp other processes' embedding, norm and head are not there and
    their layers are empty, so that names stay what they are in a single process. No more than this part and one whole
    tensor are in memory. Nothing is sharded over dp yet: see `shard`. Raises ConfigError for a model that the mesh
    cannot train and TrainingError when weights are missing.
    """
    meshes = world.meshes
    dispatch = local_dispatch
    if meshes is not None and world.section.ep > 1:
        dispatch = all_to_all_dispatch(meshes.experts.get_group("ep"))
    with torch.device("meta"):
        model = Transformer(config, dispatch)
    if world.section.pp > 1:
        _keep_stages(model, world)
    divided = _keep_experts(model, world)
    wanted = set(model.state_dict())
    held: dict[str, Tensor] = {}
    for name, value in weights:
        if name in wanted:
            piece = value.chunk(world.section.ep)[world.ep_rank] if name in divided else value
            held[name] = piece.detach().to(world.device, copy=True)
    if config.tie_word_embeddings:
        held["lm_head.weight"] = held["embed_tokens.weight"]
    if missing := sorted(wanted - held.keys()):
        raise TrainingError(f"weights to start from: {missing[0]} is missing, and {len(missing) - 1} more")
    model.load_state_dict(held, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def shard(model: Transformer, world: World, precision: str = "float32") -> None:
    """Spread a part's weights over dp (FSDP2), block by block; for pp = 1, a pipeline shards its stages itself.

    Gradients are summed, not averaged: the loss is already divided by what the global batch counts. In bf16, weights
    that are spread stay float32 and are gathered as bfloat16; their gradients are summed in float32.
    """
    if world.meshes is None or world.section.dp == 1:
        return
    for block in (*model.layers, *model.mtp):
        shard_module(block, world.meshes, reshard=True, precision=precision)
    shard_module(model, world.meshes, reshard=False, precision=precision)


def sharded_names(model: nn.Module) -> frozenset[str]:
    """Which parameters are spread over dp."""
    return frozenset(name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor))


def shard_module(module: nn.Module, meshes: Meshes, reshard: bool, precision: str = "float32") -> None:
    """Shard what of a module's weights is not sharded yet; `reshard` frees whole weights after the forward pass.

    Dense weights are spread over all of dp by rows. Experts that ep has divided are spread over the processes that hold
    the same ones: as whole experts where these divide evenly, so that an optimizer which needs whole matrices has them,
    else by the rows of each matrix.
    """
    gathered = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    replicas = meshes.experts["edp"]
    divided = meshes.experts["ep"].size() > 1
    local: set[nn.Parameter] = set()
    for experts in [each for each in module.modules() if isinstance(each, Experts) and divided]:
        if replicas.size() == 1:
            local.update(experts.parameters())
        elif not isinstance(experts, FSDPModule):
            dim = expert_shard_dim(experts, replicas.size())
            fully_shard(
                experts,
                mesh=replicas,
                reshard_after_forward=reshard,
                shard_placement_fn=lambda _, dim=dim: Shard(dim),
                mp_policy=policy,
            )
            _sum_gradients(experts)
    fully_shard(module, mesh=meshes.dense["dp"], reshard_after_forward=reshard, mp_policy=policy, ignored_params=local)
    _sum_gradients(module)


def expert_shard_dim(experts: Experts, replicas: int) -> int:
    """Which dimension of [E, ...] is spread over the replicas of an ep group's member; ConfigError when none can be."""
    shapes = [parameter.shape for parameter in experts.parameters()]
    for dim in (0, 1):
        if all(shape[dim] % replicas == 0 for shape in shapes):
            return dim
    raise ConfigError(
        f"parallel: dp / ep = {replicas} divides neither the {shapes[0][0]} experts of a process nor the model's "
        f"moe_intermediate_size {shapes[0][1]} and hidden_size {shapes[0][2]}"
    )


def load_rows(config: ModelConfig) -> dict[int, int]:
    """Each MoE layer's row in the model's `load_E` [MoE layers, E]."""
    layers = [layer for layer in range(config.num_hidden_layers) if config.is_moe_layer(layer)]
    return {layer: row for row, layer in enumerate(layers)}


def routed_layers(model: Transformer) -> list[tuple[int, MoE]]:
    """The MoE blocks a process holds, each with its row in the model's `load_E` [MoE layers, E]."""
    rows, blocks = load_rows(model.config), enumerate(model.layers)
    return [(rows[layer], each.mlp) for layer, each in blocks if isinstance(each, Block) and isinstance(each.mlp, MoE)]


def _sum_gradients(module: nn.Module) -> None:
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo has no reduction with a factor


def _keep_stages(model: Transformer, world: World) -> None:
    stages = stage_layers(model, world.section)
    mine = stages_of(world.section, world.pp_rank)
    held = {layer for stage in mine for layer in stages[stage]}
    for layer in set(range(len(model.layers))) - held:
        model.layers[layer] = nn.Module()
    if 0 not in mine:
        del model.embed_tokens
    if len(stages) - 1 not in mine:
        del model.norm, model.lm_head


def _keep_experts(model: Transformer, world: World) -> set[str]:
    """Narrow all experts' parameters to this process's, and return their names."""
    names: set[str] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, Experts):
            for name, parameter in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(parameter.chunk(world.section.ep)[world.ep_rank].detach()))
                names.add(f"{prefix}.{name}")
    return names
