"""`tapwater data`: build a corpus from raw text, look at it, and what compressors make of it."""

import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from tapwater.cli.common import console, progress_bar
from tapwater.cli.data_tables import show_baselines, show_corpus
from tapwater.cli.output import AsJson, write_json
from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from tapwater.config.corpus import CorpusConfig
    from tapwater.data.build import Progress

data = App(name="data", help="The text a model is trained on: filtered, without duplicates, tokenised.")
Settings = Annotated[str, Parameter(help="Changes of the file: section.key=value, directory=, seed=.")]
PAGE = "report.html"


@data.command
def build(config: Path, /, *settings: Settings) -> None:
    """Build the corpus that a TOML file describes, and a report of it.

    The corpus appears whole in its directory, or not at all: until then it is in DIRECTORY.partial. One that is there
    already is never touched.

    Parameters
    ----------
    config
        The sources, filters, vocabulary and splits. {stdlib} and {site_packages} in paths are those of this Python.
    """
    from tapwater.config.corpus import load_corpus_config
    from tapwater.data.build import build as build_corpus
    from tapwater.data.build import partial_directory
    from tapwater.data.corpus import Corpus

    wanted = _expanded(load_corpus_config(config, settings))
    if partial_directory(wanted).exists() and not Path(wanted.directory).exists():
        _note(f"{partial_directory(wanted)} is of a build that was interrupted: it is removed, all is done again")
    with _stages() as progress:
        directory = build_corpus(wanted, progress)
    show_corpus(Corpus.open(directory))
    try:
        _write_page(directory)
    except ConfigError as error:
        _note(f"{error}; then: tapwater data report {directory}")


@data.command
def show(directory: Path, /, *, verify: bool = False, as_json: AsJson = False) -> None:
    """What a corpus holds: sources, licences, tokens, and what was dropped.

    Parameters
    ----------
    directory
        What `tapwater data build` made.
    verify
        Also read every file and compare its hash with the one it was built with.
    """
    from rich.progress import DownloadColumn

    from tapwater.data.corpus import Corpus

    corpus = Corpus.open(directory)
    if verify:
        with progress_bar("Verifying", DownloadColumn()) as progress:
            corpus.verify(progress)
    if as_json:
        write_json(asdict(corpus.manifest) | {"fingerprint": corpus.fingerprint})
    else:
        show_corpus(corpus)


@data.command
def baselines(directory: Path, /, *, as_json: AsJson = False) -> None:
    """What zstd and an n-gram model reach on the held-out text, in bits per byte: what a model has to beat.

    The figures are kept beside the corpus, and its report shows them.

    Parameters
    ----------
    directory
        What `tapwater data build` made.
    """
    from rich.progress import MofNCompleteColumn

    from tapwater.data.baselines import baselines as measure
    from tapwater.data.baselines import write_baselines
    from tapwater.data.corpus import Corpus

    corpus = Corpus.open(directory)
    with progress_bar("Compressing held-out text", MofNCompleteColumn()) as progress:
        found = measure(corpus, progress)
    write_baselines(corpus, found)
    if as_json:
        write_json([asdict(each) for each in found])
    else:
        show_baselines(found)


@data.command
def report(directory: Path, /) -> None:
    """Write report.html into a corpus: its sources, what each filter dropped with samples, lengths, licences.

    Parameters
    ----------
    directory
        What `tapwater data build` made.
    """
    _write_page(directory)


def _write_page(directory: Path) -> None:
    from tapwater.cli.data_report import corpus_report
    from tapwater.cli.output import check_page
    from tapwater.data.corpus import Corpus
    from tapwater.data.replacing import replace_text

    path = directory / PAGE
    check_page(path, "report")
    replace_text(path, corpus_report(Corpus.open(directory)))
    _note(f"report: {path}")


def _expanded(config: "CorpusConfig") -> "CorpusConfig":
    """Placeholders and ~ in paths replaced."""
    from tapwater.config.corpus import resolve_placeholders

    paths = sysconfig.get_paths()
    filled = resolve_placeholders(config, {"stdlib": paths["stdlib"], "site_packages": paths["purelib"]})
    sources = tuple(replace(each, paths=tuple(map(_at_home, each.paths))) for each in filled.sources)
    files = replace(filled.decontamination, files=tuple(map(_at_home, filled.decontamination.files)))
    reuse = filled.tokenizer.reuse
    tokenizer = replace(filled.tokenizer, reuse=None if reuse is None else _at_home(reuse))
    return replace(
        filled, directory=_at_home(filled.directory), sources=sources, decontamination=files, tokenizer=tokenizer
    )


def _at_home(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}") from None


def _note(text: str) -> None:
    console().print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _stages() -> Iterator["Progress"]:
    """A line for each stage of a build: nobody knows how much there is to read before it is read."""
    from rich.progress import Progress as Lines
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    out = console()
    text = TextColumn("{task.description}: {task.fields[documents]:,} documents, {task.fields[megabytes]:,.1f} MB")
    tasks: dict[str, Any] = {}
    with Lines(SpinnerColumn(), text, TimeElapsedColumn(), console=out, disable=not out.is_terminal) as lines:

        def progress(stage: str, num_documents: int, num_bytes: int) -> None:
            fields = {"documents": num_documents, "megabytes": num_bytes / 1e6}
            if stage not in tasks:
                for task in tasks.values():
                    lines.stop_task(task)
                tasks[stage] = lines.add_task(stage, total=None, **fields)
            lines.update(tasks[stage], **fields)

        yield progress
