"""Pipeline parallelism: stages of layers, and torch's schedules of micro-batches over them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from tapwater.config.pretrain import ParallelSection
from tapwater.errors import ConfigError
from tapwater.model import BalanceLosses, Transformer
from tapwater.parallel.build import load_rows, shard_module
from tapwater.parallel.gradients import reshard
from tapwater.parallel.mesh import World
from tapwater.parallel.split import stage_layers, stages_of
from tapwater.parallel.stage import Job, MicroBatch, Stage, TokenLoss

Schedule = Schedule1F1B | ScheduleInterleaved1F1B | ScheduleInterleavedZeroBubble | ScheduleZBVZeroBubble


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
        self._job: Job | None = None
        self._num_stages = len(layers)
        self._group = world.meshes.dense.get_group("pp")
        self._owners = {index: rank for rank in range(world.section.pp) for index in stages_of(world.section, rank)}
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._stages: dict[int, Stage] = {}
        for index in stages_of(world.section, world.pp_rank):
            stage = Stage(model, layers[index], index == 0, index == len(layers) - 1, self._current)
            if world.section.dp > 1:
                for block in stage.layers.values():
                    shard_module(block, world.meshes, reshard=False, precision=precision)
                shard_module(stage, world.meshes, reshard=False, precision=precision)
            self._stages[index] = stage
        self._schedules: dict[int, Schedule] = {}

    def check(self, counts: Iterable[int]) -> None:
        """Raise ConfigError now for a number of micro-batches that the schedule could not run in some later step."""
        for count in counts:
            self._schedule(count)

    def forward_backward(
        self, micro_batches: Sequence[MicroBatch], token_loss: TokenLoss, balance_weight: float
    ) -> Sums:
        """Run a step's micro-batches through all stages and back; gradients are then complete, summed over dp.

        `balance_weight` multiplies each micro-batch's balance losses: its share of the global batch's rows. Raises
        ConfigError when the schedule cannot run so many micro-batches.
        """
        count, device = len(micro_batches), self.world.device
        if count not in self._schedules:
            self._schedules = {count: self._schedule(count)}  # batch ramps come back to no count they left
        with self._doing(Job(micro_batches, token_loss, balance_weight)) as job:
            numbers = torch.arange(count)
            tokens = torch.cat([micro.tokens_T for micro in micro_batches]).to(device)
            inputs = [tokens] if any(stage.is_first for stage in self._stages.values()) else []
            losses: list[Tensor] = []
            self._schedules[count].step(*inputs, target=numbers, losses=losses, return_outputs=False, number=numbers)
        return self._sums(losses, job)

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[MicroBatch], token_loss: TokenLoss) -> Sums:
        """The same without gradients, for evaluation: any number of micro-batches, through all stages in turn.

        torch's schedules of split backward passes cannot run without them. Every process takes micro-batches in
        the same order and its stages in theirs, so that none can wait for one that waits for it.
        """
        with self._doing(Job(micro_batches, token_loss, 0.0)) as job:
            losses = [loss for index in range(len(micro_batches)) if (loss := self._forward(index)) is not None]
        for stage in self._stages.values():
            reshard(stage)
        return self._sums(losses, job)

    def _forward(self, index: int) -> Tensor | None:
        """One micro-batch through this process's stages; the loss where the last stage is."""
        job, device, number = self._current(), self.world.device, torch.tensor(index)
        out: Tensor | None = None
        for place, stage in self._stages.items():
            if stage.is_first:
                x = job.micro_batches[index].tokens_T.to(device)
            elif place - 1 in self._stages and out is not None:
                x = out
            else:
                x = torch.empty(self.num_tokens, self.model.config.hidden_size, dtype=self._dtype, device=device)
                dist.recv(x, group=self._group, group_src=self._owners[place - 1])
            out = stage(x, number)
            if not stage.is_last and place + 1 not in self._stages:
                assert out is not None
                dist.send(out.contiguous(), group=self._group, group_dst=self._owners[place + 1])
        return out if any(stage.is_last for stage in self._stages.values()) else None

    @contextmanager
    def _doing(self, job: Job) -> Iterator[Job]:
        for micro in job.micro_batches:
            if micro.tokens_T.shape != (self.num_tokens,):
                raise ValueError(f"a micro-batch has {list(micro.tokens_T.shape)} tokens, not {self.num_tokens}")
        self._job = job
        try:
            yield job
        finally:
            self._job = None

    def _current(self) -> Job:
        assert self._job is not None
        return self._job

    def _sums(self, losses: list[Tensor], job: Job) -> Sums:
        loss = torch.stack([each.detach() for each in losses]).sum() if losses else torch.zeros(())
        loss = self.world.sum_pp(loss.to(self.world.device))
        config = self.model.config
        if not config.is_moe or all(micro.balance is None for micro in job.micro_batches):
            return Sums(loss, None)
        rows = load_rows(config)
        load_E = torch.zeros(len(rows), config.moe.n_routed_experts, device=self.world.device)
        terms = torch.zeros(3, device=self.world.device)
        for found in job.found:
            load_E[rows[found.layer]] += found.load_E
            terms += job.balance_weight * found.losses_3
        expert, of_device, communication = self.world.sum_pp(terms)
        return Sums(loss, BalanceLosses(expert, of_device, communication, self.world.sum_pp(load_E)))

    def _schedule(self, count: int) -> Schedule:
        section = self.world.section
        stages = [self._pipeline_stage(index, stage) for index, stage in self._stages.items()]
        try:
            return _new_schedule(section, stages, count)
        except ValueError as error:
            raise ConfigError(
                f"parallel: schedule {section.schedule} cannot run {count} micro-batches of a process over "
                f"{self._num_stages} stages: {error}"
            ) from error

    def _pipeline_stage(self, index: int, stage: Stage) -> PipelineStage:
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
            group=self._group,
        )


def _new_schedule(section: ParallelSection, stages: list[Any], count: int) -> Schedule:
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
