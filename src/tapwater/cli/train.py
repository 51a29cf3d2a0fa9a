"""`tapwater train`: make a model from a corpus."""

from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tapwater.cli.common import console, own_machines
from tapwater.cli.output import AsJson, write_json
from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from tapwater.config import PretrainConfig

INTERRUPTED = 130

Settings = Annotated[str, Parameter(help="Settings as section.key=value, e.g. train.steps=100.")]


def train(config: Path, /, *overrides: Settings, json: AsJson = False) -> int:
    """Train the model that CONFIG describes, or go on where its run stopped.

    Everything goes to train.directory: metrics.jsonl, evaluations.jsonl, tensorboard, checkpoints, and at the end the
    model as a Hugging Face directory in export and a page about the run, report.html. Ctrl-C ends the step under way,
    saves and stops; the same command goes on. Under torchrun it is one run of all processes.
    """
    from tapwater.config import load_pretrain

    settings = load_pretrain(config, overrides)
    rent_of(settings)  # refused before anything is loaded

    import torch

    from tapwater.data.corpus import Corpus
    from tapwater.llm import available_cores
    from tapwater.parallel import join, leave
    from tapwater.train.allocator import keep_freed_memory
    from tapwater.train.loop import Run

    keep_freed_memory()
    corpus = Corpus.open(Path(settings.data.corpus))
    world = join(settings.parallel)
    torch.set_num_threads(settings.train.threads or max(1, available_cores() // world.local_processes))
    try:
        finished = Run(settings, corpus, world, console(), rent_of(settings, world.machines)).train()
        if world.is_first:
            found = finished.evaluation
            _report(settings)
            facts: dict[str, object] = {
                "directory": settings.train.directory,
                "step": finished.step,
                "total_steps": finished.total_steps,
                "bits_per_byte": None if found is None else found.bits_per_byte,
                "seconds": round(finished.elapsed_s, 1),
                "cost_usd": None if finished.cost_usd is None else str(finished.cost_usd),
            }
            if json:
                write_json(facts)
            else:
                _say(facts)
    finally:
        leave()
    return INTERRUPTED if finished.is_interrupted else 0


def _report(settings: "PretrainConfig") -> None:
    """The run's page; a run of days must not end in an error for want of a package that draws."""
    if find_spec("matplotlib") is None:
        console().print("no report: it needs matplotlib, pip install 'tapwater[report]'", markup=False)
        return
    from tapwater.cli.train_report import write_training_report
    from tapwater.train.metrics import read_steps

    run = Path(settings.train.directory)
    if read_steps(run):
        path = write_training_report(run, Path(settings.data.corpus))
        console().print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)


def _say(facts: dict[str, object]) -> None:
    cost = "" if facts["cost_usd"] is None else f", ${Decimal(str(facts['cost_usd'])):.4f}"
    bits = "" if facts["bits_per_byte"] is None else f", held-out bits per byte {facts['bits_per_byte']:.4f}"
    text = f"step {facts['step']} of {facts['total_steps']}{bits}, {facts['seconds']} s{cost}"
    console().print(text, highlight=False)


def rent_of(settings: "PretrainConfig", machines: int = 1) -> Decimal | None:
    """Dollars an hour of all machines of the run; a catalogue's rent is of one machine and its devices.

    Raises ConfigError when the catalogue has the machine but not its rent.
    """
    from tapwater.cost.hardware import machine

    if settings.train.machine is None:
        return settings.train.usd_per_hour
    found = machine(settings.train.machine, own_machines())
    if found.usd_per_hour is None:
        raise ConfigError(
            f"train: no rent of machine {found.name} is known; set train.usd_per_hour instead of train.machine"
        )
    return machines * found.usd_per_hour.amount
