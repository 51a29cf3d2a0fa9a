"""What selective recomputation keeps: attention runs once."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tapwater import ops
from tapwater.config import replace_fields
from tapwater.model import Sequences, Transformer
from tapwater.model.recompute import run_again, run_again_but_attention
from tapwater.ops import native_training
from tiny import CONFIGS

AHEAD = replace_fields(CONFIGS["v3"], {"num_nextn_predict_layers": 1}, "multi-token prediction")


def test_full_recomputation_runs_every_layer_twice() -> None:
    """Those of multi-token prediction too; without a backward pass to come, once."""
    model, calls = Transformer.random(AHEAD, 0), Counter[nn.Module]()
    blocks = [*model.layers, *model.mtp]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: calls.update([module]))
    model.recompute("full")
    tokens_T, sequences = torch.arange(12), Sequences((7, 5))

    def losses() -> torch.Tensor:
        hidden_TD = model(tokens_T, sequences.positions(), sequences).hidden_TD
        (ahead,) = model.predict_ahead(hidden_TD, tokens_T, sequences)
        return hidden_TD.sum() + ahead.output.hidden_TD.sum()

    with torch.no_grad():
        losses()
    assert [calls[block] for block in blocks] == [1] * len(blocks)
    calls.clear()
    losses().backward()
    assert [calls[block] for block in blocks] == [2] * len(blocks)


@pytest.mark.parametrize(("how", "times"), [(run_again_but_attention, 1), (run_again, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_kept_by_selective_recomputation(
    how: Callable[..., Any], times: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    attention = native_training.attention

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return attention(*arguments)

    monkeypatch.setattr(native_training, "attention", counted)
    x = torch.randn(40, 2, 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    how(lambda x: ops.attention(2 * x, 3 * x, x, (30, 10), 0.25).sum(1), x).float().pow(2).sum().backward()
    assert len(calls) == times and x.grad is not None
