"""Loss spikes in synthetic curves: found where they are, and nowhere else."""

import json
import random
from math import exp, inf, nan

import pytest

from tapwater.config.pretrain import SpikeSection
from tapwater.errors import TrainingError
from tapwater.train.spikes import SpikeDetector

SECTION = SpikeSection(window=50, deviations=6.0, patience=3)


def curve(steps: int, seed: int) -> list[float]:
    """A run's loss: from 11 down to 3 with noise of 0.05, as small batches have it."""
    chance = random.Random(seed)
    return [3 + 8 * exp(-step / 150) + chance.gauss(0, 0.05) for step in range(steps)]


def first_alarm(detector: SpikeDetector, losses: list[float], start: int = 0) -> int | None:
    return next((step for step, loss in enumerate(losses, start) if detector.observe(step, loss)), None)


@pytest.mark.parametrize("seed", range(5))
def test_no_alarm_in_the_first_fall_or_in_noise(seed: int) -> None:
    assert first_alarm(SpikeDetector(SECTION), curve(4000, seed)) is None


@pytest.mark.parametrize("at", [60, 500, 3000])
def test_a_jump_is_found_when_patience_runs_out(at: int) -> None:
    losses = curve(4000, seed=1)
    for step in range(at, at + 200):
        losses[step] += 20.0 if at == 60 else 1.5  # the window still holds the first fall, so only much is much
    detector = SpikeDetector(SECTION)
    assert first_alarm(detector, losses) == at + 2
    assert detector.started == at


def test_a_slow_rise_of_a_spike_is_found_too() -> None:
    losses = curve(2000, seed=2)
    for step in range(1000, 1100):
        losses[step] += (step - 1000) * 0.1
    found = first_alarm(SpikeDetector(SECTION), losses)
    assert found is not None and 1002 < found < 1015


def test_shorter_than_patience_is_no_spike() -> None:
    losses = curve(1000, seed=3)
    losses[700] += 5.0
    losses[701] += 5.0
    detector = SpikeDetector(SECTION)
    assert first_alarm(detector, losses) is None
    assert detector.started is None


@pytest.mark.parametrize("loss", [nan, inf, -inf])
def test_a_loss_that_is_no_number_is_a_spike_at_once(loss: float) -> None:
    detector = SpikeDetector(SECTION)
    assert not detector.observe(0, 11.0)
    assert detector.observe(1, loss)
    assert detector.started == 1
    with pytest.raises(TrainingError, match="step 1: the loss, its gradient or held-out text gave"):
        SpikeDetector(SpikeSection()).observe(1, loss)


def test_without_a_window_nothing_is_looked_for() -> None:
    assert first_alarm(SpikeDetector(SpikeSection()), [1.0] * 50 + [1e6] * 50) is None


def test_a_state_through_json_goes_on_exactly() -> None:
    losses = curve(1000, seed=4)
    losses[900:] = [each + 1.5 for each in losses[900:]]
    whole, cut = SpikeDetector(SECTION), SpikeDetector(SECTION)
    assert first_alarm(cut, losses[:901]) is None
    resumed = SpikeDetector(SECTION)
    resumed.restore(json.loads(json.dumps(cut.state())))
    assert first_alarm(resumed, losses[901:], 901) == first_alarm(whole, losses) == 902
    assert resumed.state() == whole.state()


def test_rewinds_take_the_checkpoints_window_and_are_counted() -> None:
    detector = SpikeDetector(SpikeSection(window=3, patience=1, max_rewinds=2))
    for step, loss in enumerate((2.0, 2.1, 1.9)):
        detector.observe(step, loss)
    kept = detector.state()
    for rewinds in (1, 2):
        assert detector.observe(3, 9.0)
        detector.rewind(kept)
        assert detector.state() == kept | {"num_rewinds": rewinds}
    assert detector.observe(3, 9.0)
    with pytest.raises(TrainingError, match="step 3: the loss has risen again after 2 rewinds"):
        detector.rewind(kept)
