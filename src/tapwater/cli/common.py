"""What several verbs do: read the environment, find a model, load it and show that it takes time."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tapwater.config import RunConfig

if TYPE_CHECKING:
    from tapwater.llm import LLM

DEFAULT_MODEL = "smollm2-135m-instruct"  # spelt out: asking the checkpoint package would import torch for --help

Overrides = Annotated[str, Parameter(help="Settings as section.key=value, e.g. engine.threads=2.")]
ConfigFile = Annotated[Path | None, Parameter(help="A TOML file with the sections engine and server.")]


def console() -> Console:
    """Where everything goes that is not the result itself: stderr."""
    return Console(stderr=True)


def cache_dir() -> Path:
    """Where pulled models are kept: TAPWATER_CACHE, else tapwater under XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("TAPWATER_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tapwater"


def split_overrides(model: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Tell a model from a first override: `serve engine.threads=2` leaves the model out."""
    if re.match(r"\w+\.\w+=", model):
        return DEFAULT_MODEL, [model, *overrides]
    return model, list(overrides)


def locate(model: str) -> Path:
    """The files of `model` on this machine, pulled with a progress bar when they are not here."""
    from tapwater.checkpoint.pull import pull

    with _progress(f"Pulling {model}", DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as progress:
        return pull(model, cache_dir(), progress=progress)


def load(model: str, run: RunConfig) -> "LLM":
    """`model`, ready to answer; close it, or its thread outlives the interpreter."""
    path = locate(model)
    with console().status(f"Loading {model}"):
        from tapwater.llm import LLM  # torch alone takes seconds

    with _progress(f"Loading {model}", MofNCompleteColumn()) as progress:
        return LLM.load(path, run.engine, progress=progress)


def model_id(model: str) -> str:
    """The name a model is served under: itself, or of a path the last part without .gguf."""
    return Path(model).resolve().name.removesuffix(".gguf") if Path(model).exists() else model


@contextmanager
def _progress(what: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first report and is gone at the end."""
    out = console()
    text, bar = TextColumn("{task.description}"), BarColumn()
    with Progress(text, bar, *columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(what, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)
