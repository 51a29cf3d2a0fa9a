"""The tensors of training by name, as a Store saves them and fills them again in place.

model.<parameter or buffer>            model.layers.0.mlp.experts.up_proj
optimizer.<parameter>.<state>          optimizer.layers.0.mlp.experts.up_proj.exp_avg
"""

import base64
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tapwater.errors import CheckpointError


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once; to load a checkpoint into them is to load the model."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {f"model.{name}": tensor.detach() for name, tensor in named.items()}


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The state of every parameter of `model` in any of `optimizers`, as `optimizer_state` finds it."""
    found = optimizer_state(dict(model.named_parameters()), optimizers)
    return {f"optimizer.{name}.{key}": value for name, held in found.items() for key, value in held.items()}


def optimizer_state(named: Mapping[str, Tensor], optimizers: Iterable[Optimizer]) -> dict[str, dict[str, Tensor]]:
    """The state of every parameter in any of `optimizers`, by the parameter's name in `named`.

    State that is not made before the first step is made here, as it is before that step, so that names do not depend
    on when they are asked for. Raises ValueError for state that is no tensor or does not begin as zeros (AdamW's and
    Muon's does), a parameter that is not in `named`, and one that two optimizers move.
    """
    names = {id(parameter): name for name, parameter in named.items()}
    found: dict[str, dict[str, Tensor]] = {}
    for optimizer in optimizers:
        _make_state(optimizer)
        for parameter in _parameters(optimizer):
            name = names.get(id(parameter))
            if name is None or name in found:
                fault = "is not of the model" if name is None else "is moved by two optimizers"
                raise ValueError(f"{type(optimizer).__name__}: a parameter of shape {list(parameter.shape)} {fault}")
            for key, value in optimizer.state[parameter].items():
                if not isinstance(value, Tensor):
                    raise ValueError(f"{type(optimizer).__name__}: state {key} is no tensor but {type(value).__name__}")
                found.setdefault(name, {})[key] = value
    return found


@torch.no_grad()
def _make_state(optimizer: Optimizer) -> None:
    """Give state to parameters that have none: a step with a rate and gradients of 0, which moves nothing."""
    parameters = _parameters(optimizer)
    lacking = [parameter for parameter in parameters if not optimizer.state.get(parameter)]
    if not lacking:
        return
    gradients = [parameter.grad for parameter in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for parameter in parameters:
            parameter.grad = None
        for parameter in lacking:
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    for parameter in lacking:
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                if key == "step":
                    value.zero_()
                elif value.any():
                    raise ValueError(f"{type(optimizer).__name__}: state {key} does not begin as zeros")


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def random_state() -> dict[str, Any]:
    """The states of torch's, numpy's and Python's generators on the CPU, as plain JSON for a checkpoint's facts."""
    version, numbers, next_gauss = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": _encoded(torch.get_rng_state().numpy().tobytes()),
        "numpy": [str(kind), _encoded(np.asarray(keys, "<u4").tobytes()), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(numbers), next_gauss],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Continue where `random_state` was taken; CheckpointError for what it cannot have given."""
    try:
        kind, keys, *rest = state["numpy"]
        version, numbers, next_gauss = state["python"]
        torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state["torch"])), dtype=torch.uint8))
        np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), "<u4"), *rest))
        random.setstate((version, tuple(numbers), next_gauss))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the states of random generators cannot be restored: {error}") from error


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
