"""Several processes: axes dp, ep and pp on torch.distributed, which nothing else imports.

How a trainer uses it, in every process alike; a single process goes the same way, and nothing is sent:

    world = join(config.parallel)                        # rows of this process: the dp_rank-th share of the batch
    model = part_of_model(config.model, world, random_weights(config.model, seed))
    pp = 1:  shard(model, world)                         # then for each micro-batch:
             sum_after_backward(model, is_last)          #     before its backward pass
    pp > 1:  pipeline = Pipeline(model, world, tokens)   # shards too
             pipeline.check(counts)                      # of micro-batches that steps will have
             pipeline.forward_backward(micro_batches, token_loss, balance_weight)   # a whole step of them
    clip_gradients(model.parameters(), max_norm, world)
    optimizer.step()                                     # one call per group of by_mesh(model.parameters())
    update_bias(block.gate, world.sum_dp(load_E)[row], step) for row, block in routed_layers(model)
    as_pieces(model, world, tensors)                     # what a checkpoint writes and reads; exports are made from it
    leave()
"""

from tapwater.parallel.build import part_of_model, random_weights, routed_layers, shard, sharded_names
from tapwater.parallel.gradients import by_mesh, clip_gradients, reshard, sum_after_backward
from tapwater.parallel.mesh import World, join, leave
from tapwater.parallel.pipeline import Pipeline, Sums
from tapwater.parallel.stage import MicroBatch, TokenLoss
from tapwater.parallel.state import as_pieces

__all__ = [
    "MicroBatch",
    "Pipeline",
    "Sums",
    "TokenLoss",
    "World",
    "as_pieces",
    "by_mesh",
    "clip_gradients",
    "join",
    "leave",
    "part_of_model",
    "random_weights",
    "reshard",
    "routed_layers",
    "shard",
    "sharded_names",
    "sum_after_backward",
]
