"""The learning rate and the batch over a run, against the report's figures and torch's schedulers."""

from itertools import pairwise

import pytest
import torch

from tapwater.config.pretrain import BatchSection, ScheduleSection
from tapwater.errors import ConfigError
from tapwater.train.schedule import learning_rate_share, sequences_at


def rates(section: ScheduleSection, total: int) -> list[float]:
    return [learning_rate_share(step, total, section) for step in range(total)]


def test_v2_rates_are_the_reports() -> None:
    """2.4e-4, then 7.584e-5 after 60% of the run and 2.397e-5 after 90%; 2000 steps of warm-up from 0."""
    section, total = ScheduleSection(), 220_000
    found = [2.4e-4 * learning_rate_share(step, total, section) for step in (0, 999, 1999, 131_999)]
    assert found == pytest.approx([1.2e-7, 1.2e-4, 2.4e-4, 2.4e-4])
    found = [2.4e-4 * learning_rate_share(step, total, section) for step in (132_000, 197_999, 198_000, 219_999)]
    assert found == pytest.approx([7.584e-5, 7.584e-5, 2.397e-5, 2.397e-5], rel=1e-3)


def test_lite_rates_are_the_reports() -> None:
    section = ScheduleSection(step_at=(0.8, 0.9))
    found = [4.2e-4 * learning_rate_share(step, 302_000, section) for step in (241_599, 241_600, 301_999)]
    assert found == pytest.approx([4.2e-4, 1.327e-4, 4.194e-5], rel=1e-3)


def test_cosine_is_torchs() -> None:
    warmup, total = 7, 50
    section = ScheduleSection(kind="cosine", warmup_steps=warmup, final_share=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=0.1)
    expected = []
    for _ in range(total - warmup):
        optimizer.step()
        oracle.step()
        expected.append(oracle.get_last_lr()[0])
    assert rates(section, total)[warmup:] == pytest.approx(expected)
    assert rates(section, total)[-1] == pytest.approx(0.1)


def test_warmup_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 8, total_iters=7)
    expected = []
    for _ in range(12):
        expected.append(oracle.get_last_lr()[0])
        optimizer.step()
        oracle.step()
    assert rates(ScheduleSection(kind="constant", warmup_steps=8), 12) == pytest.approx(expected)


def test_wsd_holds_then_falls_in_a_line() -> None:
    found = rates(ScheduleSection(kind="wsd", warmup_steps=2, decay_share=0.2, final_share=0.5), 20)
    assert found[:2] == [0.5, 1.0]
    assert found[2:16] == [1.0] * 14
    assert found[16:] == pytest.approx([0.875, 0.75, 0.625, 0.5])


@pytest.mark.parametrize("kind", ["step", "wsd", "cosine", "constant"])
def test_without_warmup_the_rate_never_rises(kind: str) -> None:
    found = rates(ScheduleSection(kind=kind, warmup_steps=0), 30)  # type: ignore[arg-type]
    assert all(after <= before for before, after in pairwise(found))
    assert all(0 < each <= 1 for each in found)


def test_a_run_shorter_than_its_warmup_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps 2000 is more than the 1999"):
        learning_rate_share(0, 1999, ScheduleSection())
    with pytest.raises(ConfigError, match="begins within the warm-up"):
        learning_rate_share(0, 100, ScheduleSection(kind="wsd", warmup_steps=90))


def test_the_batch_grows_by_whole_rounds_from_its_first_to_its_full_size() -> None:
    section = BatchSection(sequences=9216, ramp_from=2304, ramp_steps=1000)
    found = [sequences_at(step, section, per_round=48) for step in range(1001)]
    assert (found[0], found[500], found[1000]) == (2304, 5760, 9216)
    assert all(each % 48 == 0 for each in found)
    assert sorted(found) == found
    exact = [2304 + 6912 * step / 1000 for step in range(1001)]
    assert all(0 <= e - f < 48 for e, f in zip(exact, found, strict=True))


def test_without_a_ramp_the_batch_stays() -> None:
    assert sequences_at(0, BatchSection(sequences=8), per_round=2) == 8
