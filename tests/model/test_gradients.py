"""Gradients of whole models: fast ops and the reference's agree, under functional_call and checkpointing alike."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tapwater import ops
from tapwater.config import ModelConfig, replace_fields
from tapwater.model import Sequences, Transformer
from tapwater.ops import gradients
from tiny import CONFIGS

LENGTHS = (20, 7, 7, 30)
TOKENS = sum(LENGTHS)


def gradients_of(config: ModelConfig, dtype: torch.dtype, checkpointed: bool = False) -> dict[str, Tensor]:
    """By name, of working copies in `dtype`, the router's in float32."""
    model, sequences = Transformer.random(config, 3), Sequences(LENGTHS)
    ids, targets = torch.randint(96, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    copies = {
        key: value.detach().to(torch.float32 if key.endswith("gate.weight") else dtype, copy=True).requires_grad_()
        for key, value in model.named_parameters()
    }

    def loss(ids: Tensor) -> Tensor:
        output = torch.func.functional_call(model, copies, (ids, sequences.positions(), sequences))
        return ops.linear_cross_entropy(
            output.hidden_TD, copies["lm_head.weight"], targets, torch.ones(TOKENS, dtype=torch.bool)
        )

    (checkpoint(loss, ids, use_reentrant=False) if checkpointed else loss(ids)).backward()
    return {key: value.grad.float() for key, value in copies.items()}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of all parameters, relative to the gradient's norm."""
    return max(float((found[key] - each).norm() / each.norm().clamp(min=1e-9)) for key, each in expected.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_fast_gradients_are_those_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = gradients_of(CONFIGS[name], torch.float32)
    again = gradients_of(CONFIGS[name], torch.float32, checkpointed=True)
    assert all(torch.equal(again[key], fast[key]) for key in fast)
    monkeypatch.setattr(gradients, "are_wanted", lambda *tensors: False)
    assert error(fast, gradients_of(CONFIGS[name], torch.float32)) < 1e-5


@pytest.mark.parametrize("name", ["llama-gqa", "deepseek-moe", "v2-lite-yarn"])
def test_fast_gradients_in_bfloat16_are_as_good_as_the_reference_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[name]
    if config.is_moe:  # rounding would turn some choices of experts over: let there be none
        config = replace_fields(config, {"num_experts_per_tok": config.moe.n_routed_experts}, name)
    fast = gradients_of(config, torch.bfloat16)
    monkeypatch.setattr(gradients, "are_wanted", lambda *tensors: False)
    expected, plain = gradients_of(config, torch.float32), gradients_of(config, torch.bfloat16)
    assert error(fast, expected) < 1.2 * error(plain, expected)
