"""One optimizer step: a global batch cut over processes and micro-batches, forward and backward, clip, move."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tapwater.config import PretrainConfig
from tapwater.data.batch import Batch
from tapwater.model import BalanceLosses, Transformer, update_bias
from tapwater.model.moe import MoE
from tapwater.model.mtp import MultiTokenPrediction
from tapwater.model.transformer import Block
from tapwater.parallel import (
    MicroBatch,
    Pipeline,
    World,
    clip_gradients,
    routed_layers,
    sum_after_backward,
)
from tapwater.train.loss import Losses, Rows, losses_of, next_token_loss, rows_of, with_balance
from tapwater.train.masters import Masters
from tapwater.train.optim import Optimizers


@dataclass(frozen=True)
class Trained:
    """What a step did: its losses over the global batch, and the norm of the gradient before clipping."""

    losses: Losses
    grad_norm: float


class Step:
    """Trains the part of a model that this process has; every process calls it with the same global batches."""

    def __init__(
        self,
        model: Transformer,
        pipeline: Pipeline | None,
        masters: Masters,
        optimizers: Optimizers,
        world: World,
        config: PretrainConfig,
    ) -> None:
        self.model, self.pipeline, self.world, self._config = model, pipeline, world, config
        self.masters, self.optimizers = masters, optimizers
        self._balance = config.balance if config.model.is_moe else None

    def run(self, batch: Batch, rate_share: float, number: int) -> Trained:
        """Step `number` (0 is the first) on the global `batch`, at `rate_share` of the highest learning rate."""
        losses = self.forward_backward(batch, number)
        norm = self._clip()
        self.optimizers.set_rates(rate_share)
        self.optimizers.step()
        self.optimizers.zero_grad()
        self.masters.publish()
        self._move_biases(losses.load_LE)
        return Trained(losses, norm)

    def forward_backward(self, batch: Batch, number: int) -> Losses:
        """Gradients of the masters, summed over dp, and the losses summed over all processes."""
        config = self._config
        undropped_B = self._undropped(batch, number)
        micro = config.batch.micro_sequences
        share = batch.tokens_BS.shape[0] // config.parallel.dp
        first = self.world.dp_rank * share
        parts = [
            rows_of(
                batch.rows(start, start + micro),
                self._balance,
                None if undropped_B is None else undropped_B[start : start + micro],
                self.world.device,
            )
            for start in range(first, first + share, micro)
        ]
        row_share = micro / batch.tokens_BS.shape[0]
        if self.pipeline is not None:
            mine = self._through_pipeline(self.pipeline, parts, batch.num_targets, row_share)
        else:
            mine = self._alone(parts, batch.num_targets, row_share)
        return Losses(**{name: self.world.sum_dp(value) for name, value in vars(mine).items()})

    def _alone(self, parts: list[Rows], num_targets: int, row_share: float) -> Losses:
        found: Losses | None = None
        for index, rows in enumerate(parts):
            losses = losses_of(self.model, rows, num_targets, row_share)
            sum_after_backward(self.model, index == len(parts) - 1)
            losses.total(self._config.train.mtp_weight).backward()
            self.masters.take_gradients()
            found = losses.detached() if found is None else found.plus(losses.detached())
        assert found is not None
        return found

    def _through_pipeline(self, pipeline: Pipeline, parts: list[Rows], num_targets: int, row_share: float) -> Losses:
        def token_loss(model: Transformer, hidden_TD: Tensor, index: int) -> Tensor:
            return next_token_loss(model, hidden_TD, parts[index]) / num_targets

        batches = [MicroBatch(rows.tokens_T, rows.sequences, rows.balance) for rows in parts]
        sums = pipeline.forward_backward(batches, token_loss, row_share)
        self.masters.take_gradients()
        balances: list[BalanceLosses] = [] if sums.balance is None else [sums.balance]
        return with_balance(sums.loss, torch.zeros_like(sums.loss), balances, 1.0)

    def _clip(self) -> float:
        masters = self.masters
        return clip_gradients(masters.named.values(), self._config.optimizer.clip_norm, self.world, masters.squares)

    def _undropped(self, batch: Batch, number: int) -> Tensor | None:
        """Which rows keep all their tokens: drawn from the seed and the step, alike in every process."""
        balance = self._balance
        if balance is None or balance.capacity_factor is None:
            return None
        chance = torch.Generator().manual_seed(self._config.train.seed * 2**32 + number)
        return torch.rand(batch.tokens_BS.shape[0], generator=chance) < balance.undropped_share

    def _move_biases(self, load_LE: Tensor) -> None:
        """Loss-free balancing, with what the whole batch chose; modules ahead of the model have the last rows."""
        if not self._config.balance.bias_step:
            return
        gates = [(row, block.gate) for row, block in routed_layers(self.model)]
        first = load_LE.shape[0] - len(self.model.mtp)
        for depth, module in enumerate(self.model.mtp):
            assert isinstance(module, MultiTokenPrediction) and isinstance(module.block, Block)
            if isinstance(module.block.mlp, MoE):
                gates.append((first + depth, module.block.mlp.gate))
        for row, gate in gates:
            update_bias(gate, load_LE[row], self._config.balance.bias_step)
