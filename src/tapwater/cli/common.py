"""What several verbs do: read the environment, find a model, load it and show that it takes time.

Every verb imports this file, so it imports little itself: a verb that answers from tables alone starts at once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

    from tapwater.config import ModelConfig, RunConfig
    from tapwater.llm import LLM

DEFAULT_MODEL = "smollm2-135m-instruct"  # spelt out: asking the checkpoint package would import torch for --help

Overrides = Annotated[str, Parameter(help="Settings as section.key=value, e.g. engine.threads=2.")]
ConfigFile = Annotated[Path | None, Parameter(help="A TOML file with the sections engine and server.")]


def console() -> "Console":
    """Where everything goes that is not the result itself: stderr."""
    from rich.console import Console

    return Console(stderr=True)


def cache_dir() -> Path:
    """Where pulled models are kept: TAPWATER_CACHE, else tapwater under XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("TAPWATER_CACHE")
    chosen = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tapwater"
    try:
        return chosen.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"TAPWATER_CACHE or XDG_CACHE_HOME, {chosen}: {error}") from None


def own_machines() -> Path | None:
    """Where a user's machines are, one TOML file each: `machines` in the cache directory, if there is one."""
    path = cache_dir() / "machines"
    return path if path.is_dir() else None


def split_overrides(model: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Tell a model from a first override: `serve engine.threads=2` leaves the model out."""
    if "=" in model and not Path(model).exists():
        return DEFAULT_MODEL, [model, *overrides]
    return model, list(overrides)


def locate(model: str) -> Path:
    """The files of `model` on this machine, pulled with a progress bar when they are not here."""
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from tapwater.checkpoint.pull import pull

    with progress_bar(f"Pulling {model}", DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as progress:
        return pull(model, cache_dir(), progress=progress)


def verify(model: str) -> None:
    """Hash the file of a known name again; CheckpointError if it changed. Repositories verify themselves."""
    from rich.progress import DownloadColumn

    from tapwater.checkpoint.packaged import PACKAGED_MODELS, verify_packaged

    if model in PACKAGED_MODELS:
        with progress_bar(f"Verifying {model}", DownloadColumn()) as progress:
            verify_packaged(model, cache_dir(), progress=progress)


def locate_config(model: str) -> "ModelConfig":
    """The configuration of a model; of a repository only its config.json is fetched."""
    from tapwater.checkpoint import load_config
    from tapwater.checkpoint.pull import pull_config
    from tapwater.config import read_config

    path = pull_config(model, cache_dir())
    return read_config(path) if path is not None else load_config(locate(model))


def load(model: str, run: "RunConfig") -> "LLM":
    """`model`, ready to answer; close it, or its thread outlives the interpreter."""
    from rich.progress import MofNCompleteColumn

    path = locate(model)
    with console().status(f"Loading {model}"):
        from tapwater.llm import LLM  # torch alone takes seconds

    with progress_bar(f"Loading {model}", MofNCompleteColumn()) as progress:
        return LLM.load(path, run.engine, progress=progress)


def model_id(model: str) -> str:
    """The name a model is served under: itself, or of a path the last part without .gguf."""
    return Path(model).resolve().name.removesuffix(".gguf") if Path(model).exists() else model


@contextmanager
def progress_bar(what: str, *columns: "ProgressColumn") -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first report and is gone at the end."""
    from rich.progress import BarColumn, Progress, TextColumn

    out = console()
    text, bar = TextColumn("{task.description}"), BarColumn()
    with Progress(text, bar, *columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(what, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)
