"""All runs of an ablation, one after the other; what is finished stays, what was interrupted goes on."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Protocol

from rich.console import Console

from tapwater.data.corpus import Corpus
from tapwater.parallel import World
from tapwater.train.ablation_plan import Plan, Planned, run_directory
from tapwater.train.loop import Finished, Run
from tapwater.train.view import Progress, View

FINISHED_FILE = "finished.json"  # written when a run is over, export and all
LOG_FILE = "log.txt"


class Watch(Protocol):
    """Who is told how the ablation goes on."""

    def begin(self, name: str, seed: int, step: int, total_steps: int) -> None: ...

    def step(self, progress: Progress) -> None: ...

    def end(self, finished: Finished) -> None: ...


class _Told(View):
    """A run's lines go to its log; its steps to the watch."""

    def __init__(self, log: Console, title: str, watch: Watch) -> None:
        super().__init__(log, title, every=10)
        self._watch = watch

    def show(self, progress: Progress) -> None:
        super().show(progress)
        self._watch.step(progress)


def is_finished(directory: Path, name: str, seed: int) -> bool:
    return (run_directory(directory, name, seed) / FINISHED_FILE).is_file()


def unfinished(plan: Plan, directory: Path, seeds: int) -> Iterator[tuple[Planned, int]]:
    """Seed by seed, all variants of each: a machine that grows slower, or an early end, treats all alike."""
    for seed in range(seeds):
        for variant in plan.variants:
            if not is_finished(directory, variant.name, seed):
                yield variant, seed


def run_all(
    plan: Plan, directory: Path, seeds: int, corpus: Corpus, world: World, usd_per_hour: Decimal | None, watch: Watch
) -> bool:
    """Train what is not finished; False when it was asked to stop (the run under way has saved itself)."""
    for variant, seed in unfinished(plan, directory, seeds):
        path = run_directory(directory, variant.name, seed)
        path.mkdir(parents=True, exist_ok=True)
        with (path / LOG_FILE).open("a", encoding="utf-8") as file:
            log = Console(file=file, width=200)
            run = Run(variant.run(directory, seed), corpus, world, log, usd_per_hour)
            saved = run.store.latest()
            watch.begin(variant.name, seed, 0 if saved is None else saved.step, run.total_steps)
            finished = run.train(_Told(log, str(path), watch))
        watch.end(finished)
        if finished.is_interrupted:
            return False
        _mark(path, finished)
    return True


def _mark(path: Path, finished: Finished) -> None:
    facts = {"step": finished.step, "elapsed_s": finished.elapsed_s}
    partial = path / f".{FINISHED_FILE}.partial"
    partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    partial.rename(path / FINISHED_FILE)
