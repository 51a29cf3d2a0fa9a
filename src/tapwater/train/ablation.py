"""All runs of an ablation, one after the other; what is finished stays, what was interrupted goes on."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from tapwater.config import read_json
from tapwater.data.corpus import Corpus
from tapwater.errors import DivergedError, TapwaterError
from tapwater.parallel import World
from tapwater.train.ablation_plan import Plan, Planned, run_directory
from tapwater.train.loop import Finished, Run
from tapwater.train.view import Progress, View

FINISHED_FILE = "finished.json"  # written when a run is over, export and all
DIVERGED_FILE = "diverged.json"  # instead, when its loss was no number any more
LOG_FILE = "log.txt"


class Watch(Protocol):
    """Who is told how the ablation goes on."""

    def begin(self, name: str, seed: int, step: int, total_steps: int) -> None: ...

    def step(self, progress: Progress) -> None: ...

    def end(self, finished: Finished) -> None: ...

    def diverged(self, why: str) -> None: ...


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


def diverged(directory: Path, name: str, seed: int) -> str | None:
    """What was said of a run that diverged; None for another."""
    path = run_directory(directory, name, seed) / DIVERGED_FILE
    return str(read_json(path)["why"]) if path.is_file() else None


def unfinished(plan: Plan, directory: Path, seeds: int) -> Iterator[tuple[Planned, int]]:
    """Seed by seed, all variants of each: a machine that grows slower, or an early end, treats all alike."""
    for seed in range(seeds):
        for variant in plan.variants:
            if not is_finished(directory, variant.name, seed) and diverged(directory, variant.name, seed) is None:
                yield variant, seed


def run_all(
    plan: Plan, directory: Path, seeds: int, corpus: Corpus, world: World, usd_per_hour: Decimal | None, watch: Watch
) -> bool:
    """Train what is not finished; False when it was asked to stop (the run under way has saved itself).

    A run that diverges is kept as such, and the next one begins. An error names the run it is of.
    """
    for variant, seed in unfinished(plan, directory, seeds):
        path = run_directory(directory, variant.name, seed)
        path.mkdir(parents=True, exist_ok=True)
        try:
            finished = _run(variant, seed, directory, corpus, world, usd_per_hour, watch)
        except DivergedError as error:
            why = f"{str(error).partition(';')[0]}; without its directory it is tried again"
            watch.diverged(why)
            _write(path / DIVERGED_FILE, {"why": why})
            continue
        except TapwaterError as error:
            error.args = (f"{variant.name}, seed {seed}: {error}",)
            raise
        watch.end(finished)
        if finished.is_interrupted:
            return False
        _write(path / FINISHED_FILE, {"step": finished.step, "elapsed_s": finished.elapsed_s})
    return True


def _run(
    variant: Planned,
    seed: int,
    directory: Path,
    corpus: Corpus,
    world: World,
    usd_per_hour: Decimal | None,
    watch: Watch,
) -> Finished:
    path = run_directory(directory, variant.name, seed)
    with (path / LOG_FILE).open("a", encoding="utf-8") as file:
        log = Console(file=file, width=200)
        run = Run(variant.run(directory, seed), corpus, world, log, usd_per_hour)
        saved = run.store.latest()
        watch.begin(variant.name, seed, 0 if saved is None else saved.step, run.total_steps)
        return run.train(_Told(log, str(path), watch))


def _write(path: Path, facts: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    partial.rename(path)
