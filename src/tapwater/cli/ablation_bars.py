"""What one sees of an ablation while it goes on: a bar over all runs and one of the run under way."""

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from tapwater.train.ablation import unfinished
from tapwater.train.ablation_plan import Plan
from tapwater.train.loop import Finished
from tapwater.train.view import Progress


class AblationBars:
    """A Watch: two bars on a terminal; a line as each run ends, there and elsewhere."""

    def __init__(self, console: Console, plan: Plan, directory: Path, seeds: int) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[about]}"), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        left = [(variant.name, variant.config.train.steps or 0) for variant, _ in unfinished(plan, directory, seeds)]
        total = len(plan.variants) * seeds
        self._all = self._bars.add_task("all steps", total=sum(steps for _, steps in left), about="")
        self._one = self._bars.add_task("", total=1, about="", visible=False)
        self._number, self._total = total - len(left), total
        self._base, self._steps, self._label = 0, 0, ""

    def __enter__(self) -> "AblationBars":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, name: str, seed: int, step: int, total_steps: int) -> None:
        self._number += 1
        self._steps = total_steps
        self._label = f"{name}, seed {seed}"
        about = f"run {self._number} of {self._total}"
        self._bars.update(self._all, completed=self._base + step, about=about)
        self._bars.reset(self._one, total=total_steps, completed=step, description=self._label, visible=True)

    def step(self, progress: Progress) -> None:
        self._bars.update(self._one, completed=progress.step, about=f"loss {progress.loss:.3f}")
        self._bars.update(self._all, completed=self._base + progress.step)

    def end(self, finished: Finished) -> None:
        self._base += finished.step
        bits = f", held-out bits per byte {finished.evaluation.bits_per_byte:.4f}" if finished.evaluation else ""
        state = "stopped at" if finished.is_interrupted else "finished"
        text = (
            f"{self._label}: {state} step {finished.step} of {finished.total_steps}{bits}, {finished.elapsed_s:.0f} s"
        )
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def diverged(self, why: str) -> None:
        self._base += self._steps  # they are not left to do
        self._console.print(f"{self._label}: diverged: {why}", highlight=False, markup=False, soft_wrap=True)
