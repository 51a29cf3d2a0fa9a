"""Which layers a process has: stages of about equal cost, dealt to the processes of a pipeline."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from tapwater.config import ModelConfig
from tapwater.config.pretrain import ParallelSection
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.model.moe import MoE


def stage_layers(model: Transformer, section: ParallelSection) -> list[range]:
    """The layers of each of pp * stages_per_process stages; the first embeds, the last has the head.

    Stages are whole runs of layers whose dearest is as cheap as can be. Cost counts a token's products with weights:
    an embedding is looked up and costs nothing, the head costs as much as it has weights. Raises ConfigError for fewer
    layers than stages and for models that a pipeline does not train.
    """
    config, stages = model.config, section.pp * section.stages_per_process
    _check(config, section)
    costs = [_active_parameters(config, block) for block in model.layers]
    costs[-1] += config.vocab_size * config.hidden_size
    bounds = _cheapest_cuts(costs, stages)
    return [range(start, stop) for start, stop in pairwise(bounds)]


def stages_of(section: ParallelSection, pp_rank: int) -> list[int]:
    """Which stages a process has: every pp-th, or for zbv one going down the pipeline and one coming back up."""
    last = section.pp * section.stages_per_process - 1
    if section.schedule == "zbv":
        return [pp_rank, last - pp_rank]
    return [pp_rank + turn * section.pp for turn in range(section.stages_per_process)]


def _check(config: ModelConfig, section: ParallelSection) -> None:
    stages = section.stages_per_process
    if section.schedule == "1f1b" and stages != 1:
        raise ConfigError(f"parallel: schedule 1f1b has 1 stage per process, got stages_per_process {stages}")
    if section.schedule != "1f1b" and stages < 2:
        raise ConfigError(f"parallel: schedule {section.schedule} needs stages_per_process of at least 2, got {stages}")
    if section.schedule == "zbv" and stages != 2:
        raise ConfigError(f"parallel: schedule zbv has 2 stages per process, got stages_per_process {stages}")
    if config.num_hidden_layers < section.pp * stages:
        raise ConfigError(
            f"parallel: pp {section.pp} * stages_per_process {stages} = {section.pp * stages} stages, the model has "
            f"only {config.num_hidden_layers} layers"
        )
    if config.num_nextn_predict_layers:
        raise ConfigError(
            f"parallel: pp {section.pp} cannot train multi-token prediction; set model.num_nextn_predict_layers to 0"
        )
    if config.tie_word_embeddings:
        raise ConfigError(
            f"parallel: pp {section.pp} has the embedding and the head in different processes; "
            "set model.tie_word_embeddings to false"
        )


def _active_parameters(config: ModelConfig, block: nn.Module) -> int:
    """Weights of a layer that a token is multiplied with."""
    total = sum(parameter.numel() for parameter in block.parameters())
    if isinstance(block.mlp, MoE):
        routed = sum(parameter.numel() for parameter in block.mlp.experts.parameters())
        total -= routed - routed * config.moe.num_experts_per_tok // config.moe.n_routed_experts
    return total


def _cheapest_cuts(costs: Sequence[int], stages: int) -> list[int]:
    """0 = b_0 < b_1 < .. < b_stages = len(costs), so that the dearest run of costs between two is cheapest."""
    sums = [0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    best: list[tuple[int, list[int]]] = [(sums[stop], [0, stop]) for stop in range(len(sums))]
    for stage in range(2, stages + 1):
        best = [
            min(
                (max(best[start][0], sums[stop] - sums[start]), [*best[start][1], stop])
                for start in range(stage - 1, stop)
            )
            if stop >= stage
            else (sums[-1] + 1, [0])
            for stop in range(len(sums))
        ]
    return best[-1][1]
