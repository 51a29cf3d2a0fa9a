"""A pipeline's stage: some layers of the model, and what they are told of a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tapwater.model import Balance, Sequences, Transformer
from tapwater.model.rope import rotation


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
class Found:
    """The expert, device and communication loss of a layer for a micro-batch, without their graph, and its load."""

    layer: int
    losses_3: Tensor
    load_E: Tensor


@dataclass(frozen=True)
class Job:
    """One step as its stages see it; `found` collects each MoE layer's losses."""

    micro_batches: Sequence[MicroBatch]
    token_loss: TokenLoss
    balance_weight: float
    found: list[Found] = field(default_factory=list)


class Stage(nn.Module):
    """Some layers of a Transformer, called with what the stage before sent and the number of the micro-batch."""

    def __init__(
        self, model: Transformer, layers: range, is_first: bool, is_last: bool, job: Callable[[], Job]
    ) -> None:
        super().__init__()
        self.is_first, self.is_last, self._job = is_first, is_last, job
        self._model = (model,)  # not a submodule: it has other stages' layers too
        self.layers = nn.ModuleDict({str(layer): model.layers[layer] for layer in layers})
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
            x_TD, losses = model.run(block, x_TD, turned, micro.sequences, int(layer), micro.balance)
            if losses is not None:
                terms_3 = torch.stack((losses.expert, losses.device, losses.communication)).detach()
                job.found.append(Found(int(layer), terms_3, losses.load_E))
                totals.append(losses.total)
        out = job.token_loss(model, self.norm(x_TD), index) if self.is_last else x_TD
        return _Attach.apply(out, job.balance_weight * torch.stack(totals).sum()) if totals else out


class _Attach(torch.autograd.Function):
    """x as it is; in the backward pass `loss` gets gradient 1, as if it had been added to the step's loss.

    A stage sends hidden states only, so its balance losses would never reach the loss at the end of the pipeline.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        ctx.dtype = loss.dtype
        return x.clone()  # a view could not be detached in place, as zero-bubble schedules do

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyrefly: ignore[bad-override]
        return gradient, torch.ones((), dtype=ctx.dtype, device=gradient.device)
