"""Which optimizer updates which parameter, and at what rate."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tapwater.config.pretrain import OptimizerSection
from tapwater.parallel import by_mesh
from tapwater.train.muon import StackedMuon

# Matrices that are no hidden layer: tables of tokens and of experts. Muon leaves them to AdamW.
TABLES = ("embed_tokens.weight", "lm_head.weight", ".gate.weight")


class Optimizers:
    """AdamW for everything, or Muon for hidden matrices and stacks of experts beside AdamW for the rest.

    Weight decay is on matrices alone: norms have none. `list` holds what a checkpoint keeps, in a fixed order; it may
    be shorter where a pipeline's stage has no parameter of a kind. Parameters may be DTensors.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], section: OptimizerSection) -> None:
        vectors: list[Tensor] = []
        tables: list[Tensor] = []
        matrices: list[Tensor] = []
        stacks: list[Tensor] = []
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif section.name == "adamw" or name.endswith(TABLES):
                tables.append(parameter)
            else:
                (matrices if parameter.ndim == 2 else stacks).append(parameter)
        decay, momentum = section.weight_decay, section.muon_momentum
        self.list: list[torch.optim.Optimizer] = []
        self._rates: list[float] = []
        groups = [
            {"params": of_one_mesh, "weight_decay": weight_decay}  # a fused call takes one mesh
            for parameters, weight_decay in ((tables, decay), (vectors, 0.0))
            for of_one_mesh in by_mesh(parameters)
        ]
        if groups:
            betas = (section.beta1, section.beta2)
            self._add(torch.optim.AdamW(groups, section.lr, betas, section.eps, fused=True), section.lr)
        if matrices:
            muon = torch.optim.Muon(matrices, section.muon_lr, decay, momentum)
            self._add(muon, section.muon_lr)
        if stacks:
            self._add(StackedMuon(stacks, section.muon_lr, decay, momentum), section.muon_lr)

    @classmethod
    def of(cls, model: nn.Module, section: OptimizerSection) -> "Optimizers":
        """The optimizers of a model, or of a pipeline's stage: parameters are told apart by their names and shapes."""
        return cls(model.named_parameters(), section)

    def set_rates(self, share: float) -> None:
        """Let every optimizer's next step use `share` of its highest rate."""
        for optimizer, rate in zip(self.list, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def step(self) -> None:
        for optimizer in self.list:
            optimizer.step()

    def rehearse(self) -> None:
        """Take a step that moves no weight, as long as a real one takes; `forget` then takes back what it remembers."""
        self.set_rates(0.0)
        self.step()
        self.zero_grad()

    def forget(self) -> None:
        """Be as before the first step."""
        for optimizer in self.list:
            optimizer.state.clear()

    def zero_grad(self) -> None:
        for optimizer in self.list:
            optimizer.zero_grad(set_to_none=True)

    def _add(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        self.list.append(optimizer)
        self._rates.append(rate)
