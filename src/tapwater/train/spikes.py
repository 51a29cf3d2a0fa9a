"""Seeing loss spikes: a rule over the last losses, with a state that a checkpoint can keep."""

from collections.abc import Mapping
from math import isfinite, sqrt
from typing import Any

from tapwater.config.pretrain import SpikeSection
from tapwater.errors import DivergedError, TrainingError


class SpikeDetector:
    """Watches the loss of every step and says when training must go back.

    A step is high when its loss is above the mean of the last `window` losses that were not high by `deviations` of
    their standard deviations. `patience` high steps in a row are a spike; so is at once a loss that is no number.
    High losses do not enter the window, or a spike would soon look usual. Until the window is full nothing is high:
    the first fall of a run is steeper than its noise.
    """

    def __init__(self, section: SpikeSection) -> None:
        self.section = section
        self.num_rewinds = 0
        self._recent: list[float] = []
        self._high_steps: list[int] = []

    @property
    def started(self) -> int | None:
        """The first high step of the current row: go back to a checkpoint from before it."""
        return self._high_steps[0] if self._high_steps else None

    def observe(self, step: int, loss: float) -> bool:
        """Take in the loss of a step; True when it completes a spike.

        A gradient or held-out text that gave no finite number is told of as a loss that is none: the weights are lost
        as well. Raises DivergedError for those when spikes are not looked for (window 0).
        """
        section = self.section
        if not isfinite(loss):
            if section.window == 0:
                raise DivergedError(
                    f"step {step}: the loss, its gradient or held-out text gave {loss}; lower optimizer.lr, or set "
                    "spikes.window to go back to the last checkpoint and skip the batches that led here"
                )
            self._high_steps.append(step)
            return True
        if section.window == 0:
            return False
        if self._is_high(loss):
            self._high_steps.append(step)
            return len(self._high_steps) >= section.patience
        self._high_steps.clear()
        self._recent = [*self._recent, loss][-section.window :]
        return False

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Take the window from the checkpoint gone back to, and count the rewind; TrainingError past max_rewinds."""
        if self.num_rewinds >= self.section.max_rewinds:
            raise TrainingError(
                f"step {self.started}: the loss has risen again after {self.num_rewinds} rewinds "
                "(spikes.max_rewinds); lower optimizer.lr or look at the data there"
            )
        rewinds = self.num_rewinds + 1
        self.restore(state)
        self.num_rewinds = rewinds

    def state(self) -> dict[str, Any]:
        """Plain JSON, with which `restore` goes on as if never interrupted."""
        return {"recent": list(self._recent), "high_steps": list(self._high_steps), "num_rewinds": self.num_rewinds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`; of one kept under a longer window the last losses count."""
        window = self.section.window
        self._recent = [float(loss) for loss in state["recent"]][-window:] if window else []
        self._high_steps = [int(step) for step in state["high_steps"]] if window else []
        self.num_rewinds = int(state["num_rewinds"])

    def _is_high(self, loss: float) -> bool:
        count = len(self._recent)
        if count < self.section.window:
            return False
        mean = sum(self._recent) / count
        deviation = sqrt(sum((each - mean) ** 2 for each in self._recent) / (count - 1))
        return loss > mean + self.section.deviations * deviation
