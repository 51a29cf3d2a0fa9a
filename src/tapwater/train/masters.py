"""Mixed precision: a model that computes in bfloat16, and the float32 weights the optimizer moves."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tapwater.ops import native_training as rows


class Masters:
    """The float32 weights behind a model's parameters, by the same names; in float32 they are those parameters.

    In bf16 the model's own parameters become bfloat16 copies, made anew after every step, and gradients are summed over
    micro-batches in float32. Parameters that are sharded (`sharded` names them) stay float32: what shards them computes
    with bfloat16 copies by itself. Routing biases are buffers and float32 always. `squares` are the sums of squares of
    gradients that were taken, so that clipping need not read these again; they hold until `publish`.
    """

    def __init__(self, model: nn.Module, precision: str, sharded: frozenset[str] = frozenset()) -> None:
        self.named: dict[str, Parameter] = {}
        self._copies: list[tuple[Parameter, Parameter]] = []  # what computes, what is moved
        self.squares: dict[Tensor, Tensor] = {}
        self._sums: dict[Parameter, Tensor] = {}  # memory of the masters' gradients, kept from step to step
        for name, parameter in model.named_parameters():
            if precision == "float32" or name in sharded:
                self.named[name] = parameter
                continue
            master = Parameter(parameter.detach().clone())
            parameter.data = parameter.data.bfloat16()
            self.named[name] = master
            self._copies.append((parameter, master))

    @torch.no_grad()
    def take_gradients(self) -> None:
        """After a micro-batch: add its gradients to the masters'."""
        for copy, master in self._copies:
            if copy.grad is None:
                continue
            is_first = master.grad is None
            if is_first:
                if master not in self._sums:
                    self._sums[master] = torch.empty_like(master)
                master.grad = self._sums[master]
            assert master.grad is not None
            self.squares[master] = rows.add_gradient(master.grad, copy.grad, is_first)
            copy.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """After the optimizer or a checkpoint moved the masters: let the model compute with them."""
        self.squares.clear()
        for copy, master in self._copies:
            rows.round_to(copy, master)

    def by_name(self) -> Mapping[str, Tensor]:
        """The weights without their gradients, sharing memory."""
        return {name: master.detach() for name, master in self.named.items()}
