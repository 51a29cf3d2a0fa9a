"""The state of training by name: exact after a restart, whatever the optimizers and whether they have stepped."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer

from tapwater.checkpoint.store import Store
from tapwater.checkpoint.train_state import (
    model_tensors,
    optimizer_tensors,
    random_state,
    restore_random_state,
)
from tapwater.errors import CheckpointError
from tapwater.model import Sequences, Transformer
from tiny import CONFIGS

LENGTH = 12


def adamw(model: nn.Module) -> list[Optimizer]:
    return [AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)]


def muon_and_adamw(model: nn.Module) -> list[Optimizer]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    return [Muon(matrices, lr=0.01), AdamW(others, lr=0.01)]


def train(model: Transformer, optimizers: list[Optimizer], steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 96, (LENGTH,), generator=torch.Generator().manual_seed(step))
        hidden = model(ids, Sequences((LENGTH,)).positions(), Sequences((LENGTH,))).hidden_TD
        cross_entropy(model.logits(hidden[:-1]), ids[1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("saved_after", [0, 2])
@pytest.mark.parametrize("make", [adamw, muon_and_adamw])
def test_training_goes_on_as_if_never_stopped(
    make: Callable[[nn.Module], list[Optimizer]], saved_after: int, tmp_path: Path
) -> None:
    unbroken = Transformer.random(CONFIGS["v3"], seed=1)
    train(unbroken, make(unbroken), range(4))

    first = Transformer.random(CONFIGS["v3"], seed=1)
    optimizers = make(first)
    train(first, optimizers, range(saved_after))
    store = Store(tmp_path, 1, False)
    store.save(saved_after, model_tensors(first) | optimizer_tensors(first, optimizers), {}, None)
    store.wait()
    second = Transformer.random(CONFIGS["v3"], seed=2)
    fresh = make(second)
    store.load(saved_after, model_tensors(second) | optimizer_tensors(second, fresh))
    store.close()
    for model, its_optimizers in ((first, optimizers), (second, fresh)):
        train(model, its_optimizers, range(saved_after, 4))
        for name, tensor in unbroken.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_names_say_what_they_are() -> None:
    model = Transformer.random(CONFIGS["v3"], seed=1)
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in model_tensors(model)
    names = optimizer_tensors(model, muon_and_adamw(model)).keys()
    assert {
        "optimizer.layers.1.mlp.experts.up_proj.exp_avg",
        "optimizer.layers.1.mlp.experts.up_proj.step",
        "optimizer.layers.0.self_attn.o_proj.weight.momentum_buffer",
    } < names
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    assert model_tensors(tied).keys() == {"model.a.weight", "model.a.bias", "model.b.bias"}


def test_state_made_early_moves_nothing() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data[0] = -0.0
    before, gradient = layer.weight.clone(), torch.ones(2, 3)
    layer.weight.grad = gradient
    (optimizer,) = adamw(layer)
    state = optimizer_tensors(layer, [optimizer])
    assert layer.weight.grad is gradient and optimizer.param_groups[0]["lr"] == 0.01
    assert torch.equal(layer.weight.view(torch.int32), before.view(torch.int32))
    assert not any(tensor.any() for tensor in state.values())


def test_what_cannot_be_restored_is_refused() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="mu_product does not begin as zeros"):
        optimizer_tensors(layer, [torch.optim.NAdam(layer.parameters())])
    with pytest.raises(ValueError, match="is not of the model"):
        optimizer_tensors(nn.Linear(3, 2), adamw(layer))
    with pytest.raises(ValueError, match="is moved by two optimizers"):
        optimizer_tensors(layer, [*adamw(layer), *adamw(layer)])


def test_random_numbers_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), float(np.random.normal()), float(torch.randn(()))]

    draw()
    state = random_state()
    expected = [draw() for _ in range(3)]
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected
    with pytest.raises(CheckpointError, match="random generators"):
        restore_random_state({"torch": state["torch"]})
