"""Pipeline parallelism: stages of layers, and torch's schedules of micro-batches over them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from tapwater.config.pretrain import ParallelSection
from tapwater.errors import ConfigError
from tapwater.model import Balance, BalanceLosses, Sequences, Transformer
from tapwater.model.rope import rotation
from tapwater.parallel.build import num_routed_layers, routed_layers, shard_module
from tapwater.parallel.mesh import World
from tapwater.parallel.split import stage_layers, stages_of

Schedule = Schedule1F1B | ScheduleInterleaved1F1B | ScheduleInterleavedZeroBubble | ScheduleZBVZeroBubble


@dataclass(frozen=True)
class MicroBatch:
    """What every stage is told of a micro-batch's rows: flat tokens, which belong together, and of balancing."""

    tokens_T: Tensor
    sequences: Sequences
    balance: Balance | None = None


# The last stage's share of the work: (model, hidden states after the final norm, which micro-batch) -> its share of the
# step's loss, already divided by what the global batch counts. `model` has a head to call, and no other certain part.
TokenLoss = Callable[[Transformer, Tensor, int], Tensor]


@dataclass(frozen=True)
class Sums:
    """Of one pipeline's rows, the same on all of its processes: token losses as returned, balance losses as weighted.

    `balance.load_E` has a row for each MoE layer of the whole model; None where balance was not asked for.
    """

    loss: Tensor
    balance: BalanceLosses | None


class Pipeline:
    """Trains the part of a model that `part_of_model` gave this process, with the others of its pipeline.

    Rows of a micro-batch must always have the same number of tokens in all: stages send each other tensors of one
    size. Weights are sharded over dp here; optimizer, clipping and checkpoints take `model` as they do elsewhere.
    """

    def __init__(self, model: Transformer, world: World, num_tokens: int, precision: str = "float32") -> None:
        if world.meshes is None:
            raise ValueError("a pipeline needs pp of at least 2")
        self.model, self.world, self.num_tokens = model, world, num_tokens
        with torch.device("meta"):
            layers = stage_layers(Transformer(model.config), world.section)
        self._job: _Job | None = None
        self._stages: list[tuple[int, Stage]] = []
        for index in stages_of(world.section, world.pp_rank):
            stage = Stage(model, layers[index], index == 0, index == len(layers) - 1, self._current)
            if world.section.dp > 1:
                for block in stage.layers.values():
                    shard_module(block, world.meshes, reshard=False, precision=precision)
                shard_module(stage, world.meshes, reshard=False, precision=precision)
            self._stages.append((index, stage))
        self._num_stages = len(layers)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._schedules: dict[int, Schedule] = {}

    def forward_backward(
        self, micro_batches: Sequence[MicroBatch], token_loss: TokenLoss, balance_weight: float
    ) -> Sums:
        """Run a step's micro-batches through all stages and back; gradients are then complete, summed over dp.

        `balance_weight` multiplies each micro-batch's balance losses: its share of the global batch's rows. Raises
        ConfigError when the schedule cannot run so many micro-batches.
        """
        return self._run(micro_batches, token_loss, balance_weight, backward=True)

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[MicroBatch], token_loss: TokenLoss) -> Sums:
        """The same without gradients: evaluation."""
        return self._run(micro_batches, token_loss, 0.0, backward=False)

    def _current(self) -> "_Job":
        assert self._job is not None
        return self._job

    def _run(
        self, micro_batches: Sequence[MicroBatch], token_loss: TokenLoss, balance_weight: float, backward: bool
    ) -> Sums:
        for micro in micro_batches:
            if micro.tokens_T.shape != (self.num_tokens,):
                raise ValueError(f"a micro-batch has {list(micro.tokens_T.shape)} tokens, not {self.num_tokens}")
        count, device = len(micro_batches), self.world.device
        if count not in self._schedules:
            self._schedules = {count: self._schedule(count)}  # batch ramps come back to no count they left
        schedule = self._schedules[count]
        self._job = _Job(micro_batches, token_loss, balance_weight)
        numbers = torch.arange(count, device=device)
        tokens = torch.cat([micro.tokens_T for micro in micro_batches]).to(device)
        inputs = [tokens] if any(index == 0 for index, _ in self._stages) else []
        losses: list[Tensor] = []
        run = schedule.step if backward else schedule.eval
        run(*inputs, target=numbers, losses=losses, return_outputs=False, number=numbers)
        sums = self._sums(losses, self._job)
        self._job = None
        return sums

    def _sums(self, losses: list[Tensor], job: "_Job") -> Sums:
        loss = torch.stack([each.detach() for each in losses]).sum() if losses else torch.zeros(())
        loss = self.world.sum_pp(loss.to(self.world.device))
        config = self.model.config
        if not config.is_moe or all(micro.balance is None for micro in job.micro_batches):
            return Sums(loss, None)
        load_E = torch.zeros(num_routed_layers(config), config.moe.n_routed_experts, device=self.world.device)
        terms = torch.zeros(3, device=self.world.device)
        places = {id(block): row for row, block in routed_layers(self.model)}
        for block, found in job.found:
            load_E[places[block]] += found.load_E
            terms += job.balance_weight * torch.stack((found.expert, found.device, found.communication)).detach()
        expert, of_device, communication = self.world.sum_pp(terms)
        return Sums(loss, BalanceLosses(expert, of_device, communication, self.world.sum_pp(load_E)))

    def _schedule(self, count: int) -> Schedule:
        section = self.world.section
        stages = [self._pipeline_stage(index, stage) for index, stage in self._stages]
        try:
            return _new_schedule(section, stages, count)
        except ValueError as error:
            raise ConfigError(
                f"parallel: schedule {section.schedule} cannot run {count} micro-batches of a process over "
                f"{self._num_stages} stages: {error}"
            ) from error

    def _pipeline_stage(self, index: int, stage: "Stage") -> PipelineStage:
        meshes = self.world.meshes
        assert meshes is not None
        # Told the shapes, torch need not find them by running a micro-batch, which would leave traces in the sums.
        hidden = torch.empty(self.num_tokens, self.model.config.hidden_size, dtype=self._dtype, device="meta")
        tokens = torch.empty(self.num_tokens, dtype=torch.int64, device="meta")
        return PipelineStage(
            stage,
            index,
            self._num_stages,
            self.world.device,
            input_args=tokens if stage.is_first else hidden.requires_grad_(),
            output_args=torch.empty((), device="meta", requires_grad=True)
            if stage.is_last
            else hidden.requires_grad_(),
            group=meshes.dense.get_group("pp"),
        )


def _new_schedule(section: ParallelSection, stages: list[PipelineStage], count: int) -> Schedule:
    if section.schedule == "1f1b":
        return Schedule1F1B(stages[0], count, loss_fn=_as_returned, scale_grads=False)
    if section.schedule == "interleaved":
        return ScheduleInterleaved1F1B(stages, count, loss_fn=_as_returned, scale_grads=False)
    if section.schedule == "interleaved_zero_bubble":
        return ScheduleInterleavedZeroBubble(stages, count, loss_fn=_as_returned, scale_grads=False)
    return ScheduleZBVZeroBubble(stages, count, loss_fn=_as_returned, scale_grads=False)


def _as_returned(loss: Tensor, number: Tensor) -> Tensor:
    """The last stage computes the loss itself: the head is its own, and FSDP must see it used."""
    return loss


@dataclass(frozen=True)
class _Job:
    """One step as its stages see it; `found` collects each MoE block's losses by the block's id."""

    micro_batches: Sequence[MicroBatch]
    token_loss: TokenLoss
    balance_weight: float
    found: list[tuple[int, BalanceLosses]] = field(default_factory=list)


class Stage(nn.Module):
    """Some layers of a Transformer, called with what the stage before sent and the number of the micro-batch."""

    def __init__(
        self, model: Transformer, layers: range, is_first: bool, is_last: bool, job: Callable[[], _Job]
    ) -> None:
        super().__init__()
        self.is_first, self.is_last, self._job = is_first, is_last, job
        self._model = (model,)  # not a submodule: it has other stages' layers too
        self.layers = nn.ModuleDict({str(layer): model.layers[str(layer)] for layer in layers})
        if is_first:
            self.embed_tokens = model.embed_tokens
        if is_last:
            self.norm, self.lm_head = model.norm, model.lm_head

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """Hidden states [T, D] of tokens [T] or of hidden states; the last stage returns its share of the loss."""
        job, model = self._job(), self._model[0]
        index = int(number)
        micro = job.micro_batches[index]
        turned = rotation(model.config, micro.sequences.positions().to(x.device))
        x_TD = self.embed_tokens(x) if self.is_first else x
        totals: list[Tensor] = []
        for layer, block in self.layers.items():
            x_TD, losses = block(x_TD, turned, micro.sequences, int(layer), micro.balance)
            if losses is not None:
                job.found.append((id(block.mlp), losses))
                totals.append(losses.total)
        out = job.token_loss(model, self.norm(x_TD), index) if self.is_last else x_TD
        return _Attach.apply(out, job.balance_weight * torch.stack(totals).sum()) if totals else out


class _Attach(torch.autograd.Function):
    """x as it is; in the backward pass `loss` gets gradient 1, as if it had been added to the step's loss.

    A stage sends hidden states only, so its balance losses would never reach the loss at the end of the pipeline.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return x.clone()  # a view could not be detached in place, as zero-bubble schedules do

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.ones((), dtype=ctx.dtype, device=gradient.device)
