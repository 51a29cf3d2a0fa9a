"""The model of a run and its training step, from a config: this process's part of them."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tapwater.checkpoint import load_hf
from tapwater.config import PretrainConfig
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.parallel import Pipeline, World, part_of_model, random_weights, shard, sharded_names
from tapwater.train.masters import Masters
from tapwater.train.optim import Optimizers
from tapwater.train.probe import Precision
from tapwater.train.schedule import rows_per_round, sequences_at
from tapwater.train.step import Step


def build_step(config: PretrainConfig, precision: Precision, world: World) -> Step:
    """The step of a run before its first one; ConfigError for a mesh or a batch that cannot be."""
    model = part_of_model(config.model, world, starting_weights(config))
    model.recompute(config.train.recomputation)
    pipeline = None
    if config.parallel.pp > 1:
        tokens = config.batch.micro_sequences * config.data.sequence_length
        pipeline = Pipeline(model, world, tokens, precision)
        per_round = rows_per_round(config)
        rows = {sequences_at(step, config.batch, per_round) for step in range(config.batch.ramp_steps + 1)}
        pipeline.check(sorted(each // per_round for each in rows))
    else:
        shard(model, world, precision)
    masters = Masters(model, precision, sharded_names(model))
    return Step(model, pipeline, masters, Optimizers(masters.named.items(), config.optimizer), world, config)


def starting_weights(config: PretrainConfig) -> Iterable[tuple[str, Tensor]]:
    """Random weights by the run's seed, or those of init.checkpoint in float32."""
    if config.init.checkpoint is None:
        return random_weights(config.model, config.train.seed)
    model = load_hf(Path(config.init.checkpoint), torch.float32)
    shapes = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    with torch.device("meta"):
        wanted = {name: tuple(each.shape) for name, each in Transformer(config.model).state_dict().items()}
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise ConfigError(
                f"init: {config.init.checkpoint} has {name} {shapes.get(name, 'not at all')}, the model of this run "
                f"{wanted.get(name, 'not at all')}; a stage may change rope and lengths, not weights"
            )
    return model.state_dict().items()
