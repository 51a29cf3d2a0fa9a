"""The float32 weights behind a bfloat16 model."""

import pytest
import torch
from torch import nn

from tapwater.config.pretrain import ParallelSection
from tapwater.parallel import clip_gradients, join
from tapwater.train.masters import Masters


def backward(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """New gradients in the model; they themselves."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).to(model[0].weight.dtype)
    model(x).square().sum().backward()
    return {name: each.grad.float() for name, each in model.named_parameters() if each.grad is not None}


def test_gradients_add_up_in_float32_and_are_clipped_as_torch_clips() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3, bias=False))
    masters = Masters(model, "bf16")
    assert all(each.dtype is torch.bfloat16 for each in model.parameters())
    for step in range(2):  # memory of gradients is used again
        first = backward(model, 2 * step)
        masters.take_gradients()
        second = backward(model, 2 * step + 1)
        masters.take_gradients()
        assert all(each.grad is None for each in model.parameters())
        for name, master in masters.named.items():
            assert torch.equal(master.grad, first[name] + second[name])
        expected = [nn.Parameter(torch.zeros_like(each)) for each in masters.named.values()]
        for each, master in zip(expected, masters.named.values(), strict=True):
            each.grad = master.grad.clone()
        norm = clip_gradients(masters.named.values(), 0.5, join(ParallelSection()), masters.squares)
        torch.testing.assert_close(norm, float(torch.nn.utils.clip_grad_norm_(expected, 0.5)), rtol=1e-5, atol=0)
        assert norm > 0.5
        for each, master in zip(expected, masters.named.values(), strict=True):
            torch.testing.assert_close(master.grad, each.grad, rtol=1e-5, atol=0)
            master.grad = None


def test_known_squares_are_taken_for_what_they_are_and_not_kept_for_the_next_step() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3))
    masters = Masters(model, "bf16")
    world = join(ParallelSection())
    backward(model, 0)
    masters.take_gradients()
    assert set(masters.squares) == set(masters.named.values())
    first, *others = masters.named.values()
    rest = sum(float(each.grad.square().sum()) for each in others)
    norm = clip_gradients(masters.named.values(), 1e9, world, {first: torch.tensor(100.0).double()})
    assert norm == pytest.approx((100.0 + rest) ** 0.5, rel=1e-5)
    masters.publish()
    assert not masters.squares


def test_gradients_that_came_from_elsewhere_are_added_to() -> None:
    model = nn.Sequential(nn.Linear(8, 5, bias=False))
    masters = Masters(model, "bf16")
    (master,) = masters.named.values()
    master.grad = torch.ones_like(master)
    (mine,) = backward(model, 0).values()
    masters.take_gradients()
    assert torch.equal(master.grad, mine + 1)


def test_the_model_computes_with_rounded_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 5))
    masters = Masters(model, "bf16")
    with torch.no_grad():
        for master in masters.named.values():
            master += 1e-3
    masters.publish()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, masters.named[name].bfloat16())


def test_in_float32_the_masters_are_the_parameters() -> None:
    model = nn.Sequential(nn.Linear(8, 5))
    masters = Masters(model, "float32")
    assert all(masters.named[name] is parameter for name, parameter in model.named_parameters())
    backward(model, 0)
    masters.take_gradients()
    assert not masters.squares and model[0].weight.grad is not None
