"""A few steps of training, in one process by torch alone and in several by tapwater.parallel: the two must agree."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tapwater.config import BalanceConfig, ModelConfig, replace_fields
from tapwater.config.pretrain import ParallelSection
from tapwater.model import Balance, Sequences, Transformer, update_bias
from tapwater.model.recompute import Recomputation
from tapwater.parallel import (
    MicroBatch,
    Pipeline,
    World,
    as_pieces,
    by_mesh,
    clip_gradients,
    join,
    leave,
    part_of_model,
    random_weights,
    routed_layers,
    shard,
    sharded_names,
    sum_after_backward,
)
from tapwater.train.masters import Masters
from tapwater.train.state import tensors_of
from tiny import CONFIGS

ROWS, LENGTH, STEPS = 8, 16, 3
PIECES = ((16,), (5, 11), (1, 15), (8, 8), (16,), (3, 4, 9), (2, 14), (12, 4))
WIDE = replace_fields(CONFIGS["v2"], {"num_hidden_layers": 5}, "five layers")
SIGMOID = replace_fields(CONFIGS["v3"], {"num_hidden_layers": 5}, "five layers")
AHEAD = replace_fields(CONFIGS["v3"], {"num_nextn_predict_layers": 1}, "multi-token prediction")
SIX_EXPERTS = replace_fields(CONFIGS["deepseek-moe"], {"num_hidden_layers": 3}, "six experts")
TIED = replace_fields(CONFIGS["llama-gqa"], {"tie_word_embeddings": True}, "dense, tied")
V2 = BalanceConfig(num_devices=4, max_devices=2)
DROPPING = BalanceConfig(num_devices=4, max_devices=2, capacity_factor=0.6)
BIASED = BalanceConfig(expert_alpha=1e-2, device_alpha=0, communication_alpha=0, num_devices=4, bias_step=0.01)


Row = tuple[MicroBatch, Tensor, Tensor]  # with its targets and mask


@dataclass(frozen=True)
class Case:
    """A model, how it is balanced, and the learning rate that makes three steps matter."""

    model: ModelConfig = WIDE
    balance: BalanceConfig = V2
    lonely_expert: bool = False  # experts of the second half are never chosen
    first_rows: int = ROWS  # of the first step
    recomputation: Recomputation = "none"


@dataclass(frozen=True)
class Found:
    """What a run of a Case came to; tensors by single-process names, on the first process only."""

    losses: list[float]
    evaluation: float  # token loss of the batch after the last, without gradients
    norms: list[float]
    loads: list[list[float]]
    gradients: dict[str, Tensor] | None
    again: bool  # layers ran within a backward pass
    weights: dict[str, Tensor]


def rows(case: Case, step: int) -> list[Row]:
    """The global batch of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    found = []
    for row in range(case.first_rows if step == 0 else ROWS):
        tokens = torch.randint(2, 96, (LENGTH + 1,), generator=generator)
        mask = torch.rand(LENGTH, generator=generator) < 0.9
        undropped = torch.full((LENGTH,), row == 0)
        balance = Balance(case.balance, undropped) if case.model.is_moe else None
        micro = MicroBatch(tokens[:-1], Sequences(PIECES[row]), balance)
        found.append((micro, tokens[1:], mask))
    return found


def weights_of(case: Case) -> dict[str, Tensor]:
    weights = dict(random_weights(case.model, seed=5))
    if case.lonely_expert:
        for name in weights:
            if name.endswith("gate.e_score_correction_bias"):
                weights[name][4:] = -10.0
    return weights


def token_loss(model: Transformer, hidden_TD: Tensor, targets_T: Tensor, mask_T: Tensor, total: int) -> Tensor:
    return F.cross_entropy(model.logits(hidden_TD)[mask_T], targets_T[mask_T], reduction="sum") / total


def losses_of(model: Transformer, row: Row, total: int) -> tuple[Tensor, Tensor]:
    """All of a row's losses, multi-token prediction's too, and the experts' loads."""
    micro, targets_T, mask_T = row
    output = model(micro.tokens_T, micro.sequences.positions(), micro.sequences, micro.balance)
    loss, load_E = token_loss(model, output.hidden_TD, targets_T, mask_T, total), torch.zeros(())
    if output.balance is not None:
        loss, load_E = loss + output.balance.total / ROWS, output.balance.load_E
    for depth, ahead in enumerate(
        model.predict_ahead(output.hidden_TD, micro.tokens_T, micro.sequences, micro.balance), start=1
    ):
        pieces = targets_T.split(micro.sequences.lengths)
        further_T = torch.cat([piece[depth:] for piece in pieces if len(piece) > depth])
        loss = loss + 0.3 * F.cross_entropy(model.logits(ahead.output.hidden_TD), further_T, reduction="sum") / total
        loss = loss + ahead.output.balance.total / ROWS
    return loss, load_E


def num_targets(batch: list[Row]) -> int:
    return sum(int(mask_T.sum()) for _, _, mask_T in batch)


def new_optimizer(groups: list[list[torch.nn.Parameter]], fused: bool) -> torch.optim.AdamW:
    """eps is large: without it a gradient of nearly 0 decides by its sign, and rounding by a whole step."""
    return torch.optim.AdamW([{"params": group} for group in groups], lr=3e-3, eps=1e-5, weight_decay=0.1, fused=fused)


def by_torch(case: Case) -> Found:
    """The oracle: one process, nothing of tapwater.parallel but the weights' names."""
    model = Transformer.random(case.model, seed=5)
    model.load_state_dict(weights_of(case), strict=False)
    optimizer = new_optimizer([list(model.parameters())], fused=False)
    losses, norms, loads, gradients = [], [], [], {}
    for step in range(STEPS):
        batch = rows(case, step)
        loss, load = 0.0, torch.zeros(())
        for row in batch:
            share, load_E = losses_of(model, row, num_targets(batch))
            share.backward()
            loss, load = loss + share.item(), load + load_E
        if not step:
            gradients = {
                name: parameter.grad.clone() for name, parameter in model.named_parameters(remove_duplicate=False)
            }
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        if case.balance.bias_step:
            for layer, load_E in zip(model.layers[1:], load, strict=True):
                update_bias(layer.mlp.gate, load_E, case.balance.bias_step)
        losses.append(loss)
        loads.append(load.tolist())
    evaluation, batch = 0.0, rows(case, STEPS)
    with torch.no_grad():
        for micro, targets, mask in batch:
            hidden = model(micro.tokens_T, micro.sequences.positions(), micro.sequences).hidden_TD
            evaluation += token_loss(model, hidden, targets, mask, num_targets(batch)).item()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return Found(losses, evaluation, norms, loads, gradients, False, weights)


class Run:
    """A Case on a mesh, as a trainer would go about it."""

    def __init__(self, case: Case, world: World) -> None:
        self.case, self.world = case, world
        self.model = part_of_model(case.model, world, weights_of(case).items())
        self.model.recompute(case.recomputation)
        self.pipeline = Pipeline(self.model, world, LENGTH) if world.section.pp > 1 else None
        if self.pipeline is None:
            shard(self.model, world)
        self.optimizer = new_optimizer(by_mesh(self.model.parameters()), fused=True)
        self.gradients: dict[str, Tensor] | None = None  # of the first step
        self.again = False
        for block in self.model.layers:
            block.register_forward_pre_hook(self._notice)
        # taken once: between a forward and a backward pass a sharded model has whole weights in their places
        self.parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self.masters = Masters(self.model, "float32", sharded_names(self.model))

    def _notice(self, *_: object) -> None:
        self.again |= torch._C._current_graph_task_id() != -1  # noqa: SLF001 - a backward pass is under way

    def mine(self, batch: list[Row]) -> list[Row]:
        share = len(batch) // self.world.section.dp
        return batch[self.world.dp_rank * share : (self.world.dp_rank + 1) * share]

    def step(self, number: int) -> tuple[float, float, list[Any]]:
        """Loss, gradient norm and loads of a step of the global batch."""
        batch = rows(self.case, number)
        loss, load = self.backward(self.mine(batch), num_targets(batch))
        load = self.world.sum_dp(load)
        if self.gradients is None:
            gradients = {name: each.grad for name, each in self.parameters.items()}
            self.gradients = gathered(self.model, self.world, gradients)
        norm = clip_gradients(self.model.parameters(), 1.0, self.world)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.case.balance.bias_step:
            for row, block in routed_layers(self.model):
                update_bias(block.gate, load[row], self.case.balance.bias_step)
        return float(self.world.sum_dp(loss)), norm, load.tolist()

    def backward(self, batch: list[Row], total: int) -> tuple[Tensor, Tensor]:
        if self.pipeline is not None:
            sums = self.pipeline.forward_backward(
                [micro for micro, _, _ in batch],
                lambda model, hidden, index: token_loss(model, hidden, *batch[index][1:], total),
                1 / ROWS,
            )
            return sums.loss + sums.balance.total, sums.balance.load_E
        loss, load = torch.zeros(()), torch.zeros(())
        for index, row in enumerate(batch):
            sum_after_backward(self.model, is_last=index == len(batch) - 1)
            share, load_E = losses_of(self.model, row, total)
            share.backward()
            loss, load = loss + share.detach(), load + load_E
        return loss, load

    def weights(self) -> dict[str, Tensor]:
        return gathered(self.model, self.world, {**self.parameters, **dict(self.model.named_buffers())})

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return tensors_of(self.model, self.masters, [self.optimizer], self.world)

    @torch.no_grad()
    def evaluate(self, number: int) -> float:
        batch = rows(self.case, number)
        mine, total = self.mine(batch), num_targets(batch)
        if self.pipeline is not None:
            plain = [MicroBatch(micro.tokens_T, micro.sequences) for micro, _, _ in mine]
            sums = self.pipeline.forward(plain, lambda model, x, index: token_loss(model, x, *mine[index][1:], total))
            return float(self.world.sum_dp(sums.loss))
        loss = torch.zeros(())
        for micro, targets, mask in mine:
            hidden = self.model(micro.tokens_T, micro.sequences.positions(), micro.sequences).hidden_TD
            loss += token_loss(self.model, hidden, targets, mask, total)
        return float(self.world.sum_dp(loss))


def by_parallel(case: Case, section: ParallelSection) -> Found:
    """The same steps on a mesh; every process calls it."""
    world = join(section, timeout_s=60)
    try:
        run = Run(case, world)
        losses, norms, loads = zip(*(run.step(number) for number in range(STEPS)), strict=True)
        evaluation = run.evaluate(STEPS)
        return Found(list(losses), evaluation, list(norms), list(loads), run.gradients, run.again, run.weights())
    finally:
        leave()


def saved(case: Case, section: ParallelSection, directory: str) -> None:
    """All steps but the last, then a checkpoint."""
    world = join(section, timeout_s=60)
    try:
        run = Run(case, world)
        for number in range(STEPS - 1):
            run.step(number)
        dcp.save(run.state(), checkpoint_id=directory)
    finally:
        leave()


def resumed(case: Case, section: ParallelSection, directory: str) -> Found:
    """The last step from a checkpoint, perhaps of another mesh; what is not in the checkpoint is damaged first."""
    world = join(section, timeout_s=60)
    try:
        run = Run(case, world)
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
        run.optimizer.zero_grad()
        dcp.load(run.state(), checkpoint_id=directory)
        loss, norm, load = run.step(STEPS - 1)
        return Found([loss], 0.0, [norm], [load], run.gradients, run.again, run.weights())
    finally:
        leave()


def gathered(model: Transformer, world: World, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the first process, by way of a checkpoint; others get an empty dict."""
    directory = world.broadcast(mkdtemp() if world.is_first else None)
    pieces = as_pieces(model, world, {name: each.detach() for name, each in tensors.items()})
    dcp.save(dict(pieces), checkpoint_id=directory)
    found: dict[str, Tensor] = {}
    if world.is_first:
        stored = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
        found = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in stored.items()}
        dcp.load(found, checkpoint_id=directory, no_dist=True)
        shutil.rmtree(directory)
    world.barrier()
    return found
