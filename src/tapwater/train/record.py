"""Where a run's numbers go while it trains: its files, TensorBoard, and who looks on."""

import time
from collections.abc import Sequence
from pathlib import Path

from tapwater.train.clock import Clock
from tapwater.train.metrics import Evaluation, Filled, MetricsLog, StepMetrics
from tapwater.train.tensorboard import TensorBoard
from tapwater.train.view import Progress, View


class Record:
    """Takes in steps and evaluations after `step`; the first process of a run writes, the others only have a view.

    What was written of later steps is cut off first. Close it, or use it with `with`.
    """

    def __init__(self, directory: Path, step: int, total_steps: int, view: View, clock: Clock, writes: bool) -> None:
        self._directory, self._total_steps = directory, total_steps
        self._view, self._clock, self._writes = view, clock, writes
        self._start, self._num_steps = time.perf_counter(), 0  # of this process
        self._open(step)

    def step(self, metrics: StepMetrics, evaluated: Evaluation | None) -> None:
        """Write and show one step; `evaluated` is the last evaluation until then."""
        for log in self._logs:
            log.step(metrics)
        if self._writes:
            self._clock.keep()
        self._num_steps += 1
        self._view.show(self._progress(metrics, evaluated))

    def evaluation(self, evaluation: Evaluation, infills: Sequence[Filled]) -> None:
        """Write one evaluation, with the infills it tried, and say it."""
        for log in self._logs:
            log.evaluation(evaluation, infills)
        sources = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.sources.items())
        exact = "" if evaluation.fim_exact is None else f"; infills exact {evaluation.fim_exact:.1%}"
        if evaluation.fim_exact_spm is not None:
            exact += f", suffix first {evaluation.fim_exact_spm:.1%}"
        self._view.note(
            f"step {evaluation.step}: held-out bits per byte {evaluation.bits_per_byte:.4f} ({sources}){exact}"
        )

    def back_to(self, step: int, why: str) -> None:
        """Cut off what is after `step`: the run has gone back to it."""
        self.close()
        self._open(step)
        self._view.note(why)

    def close(self) -> None:
        for log in self._logs:
            log.close()

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, step: int) -> None:
        self._logs: list[MetricsLog | TensorBoard] = []
        if self._writes:
            self._logs = [MetricsLog(self._directory, step), TensorBoard(self._directory, step)]

    def _progress(self, metrics: StepMetrics, evaluated: Evaluation | None) -> Progress:
        """What is left is as slow as this process was so far, evaluations and checkpoints among it."""
        left_s = (time.perf_counter() - self._start) / self._num_steps * (self._total_steps - metrics.step)
        return Progress(
            step=metrics.step,
            total_steps=self._total_steps,
            loss=metrics.loss,
            lr=metrics.lr,
            grad_norm=metrics.grad_norm,
            tokens=metrics.tokens,
            tokens_per_s=metrics.tokens_per_s,
            elapsed_s=self._clock.spent().elapsed_s,
            left_s=left_s,
            mfu=metrics.mfu,
            bits_per_byte=None if evaluated is None else evaluated.bits_per_byte,
            fim_exact=None if evaluated is None else evaluated.fim_exact,
            fim_exact_spm=None if evaluated is None else evaluated.fim_exact_spm,
            cost_usd=metrics.cost_usd,
            total_usd=self._clock.spent(ahead_s=left_s).cost_usd,
            load_LE=metrics.load_LE,
        )
