"""What selective recomputation keeps: attention runs once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tapwater import ops
from tapwater.model.recompute import run_again, run_again_but_attention
from tapwater.ops import native_training


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
