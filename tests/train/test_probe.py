"""Choosing the precision, and the peak of products."""

import time

import pytest
import torch

from tapwater.ops.peak import least_seconds, products_per_s
from tapwater.train import probe
from tapwater.train.probe import Precision, fastest_precision, matmul_peak
from tiny import CONFIGS

CPU = torch.device("cpu")


@pytest.mark.parametrize("slow", ["float32", "bf16"])
def test_the_faster_precision_is_chosen_though_it_is_slow_to_warm_up(slow: Precision) -> None:
    calls: list[Precision] = []

    def run_step(precision: Precision) -> None:
        is_first = precision not in calls
        calls.append(precision)
        time.sleep(0.004 if precision == slow else 0.03 if is_first else 0.0005)

    found = fastest_precision(run_step, rounds=2)
    assert found.fastest != slow
    assert found.seconds[slow] >= 0.004 > found.seconds[found.fastest]
    assert calls == ["float32", "bf16"] * 3


def test_the_peak_is_at_least_that_of_every_product_and_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SQUARES", (256,))
    peak = matmul_peak(torch.float32, CONFIGS["v2"], 64, CPU)
    x = torch.randn(256, 256)
    seconds = least_seconds(lambda: x @ x, 3)
    assert peak > 0.3 * 2 * 256**3 / seconds  # noise of a shared machine
    assert 1e8 < peak < 1e15
    assert products_per_s(torch.float32, [(1, 1, 1)], 1) < peak


def test_products_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(probe, "products_per_s", lambda dtype, products, repeats, device: found.extend(products) or 1.0)
    config = CONFIGS["v2"]
    matmul_peak(torch.bfloat16, config, 77, CPU)
    assert (77, config.hidden_size, config.vocab_size) in found
    assert (77, config.hidden_size, config.moe.moe_intermediate_size) in found
    assert (2048, 2048, 2048) in found
