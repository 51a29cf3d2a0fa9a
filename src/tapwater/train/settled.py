"""What a run settles when it begins, kept in its directory as run.json: a run that goes on must be the same."""

import json
import shutil
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from tapwater.checkpoint.export import CHECKPOINTS, TOKENIZER
from tapwater.config import PretrainConfig, read_json
from tapwater.config.model import to_plain
from tapwater.data.corpus import Corpus
from tapwater.errors import ConfigError, TrainingError
from tapwater.parallel import World
from tapwater.train.clock import SPENT_FILE
from tapwater.train.metrics import STEPS
from tapwater.train.probe import PRECISIONS, Precision

RUN_FILE = "run.json"
EXPORT = "export"
# What may change when a run goes on: where and how it is computed, watched and kept; not what it computes. Steps,
# minutes and precision were settled when it began, and the corpus may have moved: `_check_settled` refuses others.
FREE = {"data": {"corpus"},
        "train": {"directory", "threads", "machine", "usd_per_hour", "recomputation", "minutes", "steps", "precision"},
        "parallel": None, "checkpoint": None, "evaluation": None, "spikes": None,
        "batch": {"micro_sequences"}}  # fmt: skip


@dataclass(frozen=True)
class Settled:
    """What is measured or computed once and then holds for the whole run."""

    precision: Precision
    total_steps: int


def settled_before(config: PretrainConfig, corpus: Corpus, world: World) -> Settled | None:
    """What this run settled when it began; None for a new one.

    Raises TrainingError for a run.json that is damaged, of other settings or of another corpus, and for a directory of
    an unknown run.
    """
    directory = Path(config.train.directory)
    path = directory / RUN_FILE
    found = None
    if world.is_first and path.is_file():
        found = _read(path)
    elif world.is_first:
        for name in (CHECKPOINTS, EXPORT, STEPS, SPENT_FILE):
            if (directory / name).exists():
                raise TrainingError(
                    f"{directory / name}: exists, and no {RUN_FILE} says what run it is of; choose another "
                    "directory or remove it"
                )
    found = world.broadcast(found)
    if found is None:
        return None
    check_same(found["config"], config, str(path))
    _check_settled(found, config, corpus, str(path))
    return Settled(found["precision"], found["total_steps"])


def begin(settled: Settled, config: PretrainConfig, corpus: Corpus) -> None:
    """Make the directory of a new run, with the corpus's tokenizer; for one process, when nothing can be refused."""
    directory = Path(config.train.directory)
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree(corpus.tokenizer_directory, directory / TOKENIZER, dirs_exist_ok=True)
    record = {**asdict(settled), "corpus": corpus.fingerprint, "config": plain(config)}
    partial = directory / f".{RUN_FILE}.partial"
    partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(directory / RUN_FILE)


def plain(config: PretrainConfig) -> dict[str, Any]:
    """The settings of a run as plain JSON, money as text."""
    values = asdict(config) | {"model": to_plain(config.model)}
    return _plain(values)


def check_same(saved: dict[str, Any], config: PretrainConfig, where: str) -> None:
    """TrainingError naming every setting that differs from those the run began with, but for FREE ones."""
    own = plain(config)
    changed: list[str] = []
    for section in sorted(own.keys() | saved.keys()):
        free = FREE.get(section, set())
        if free is None:
            continue
        if section == "batch" and config.balance.capacity_factor is not None:
            free = set()  # which tokens are dropped depends on those they are computed with
        before, now = _defaults(config, section) | (saved.get(section) or {}), own.get(section) or {}
        names = (before.keys() | now.keys()) - free
        changed += [f"{section}.{name}" for name in sorted(names) if before.get(name) != now.get(name)]
    if changed:
        raise TrainingError(
            f"{where}: the run began with other settings of {', '.join(changed)}; set them as they were, or choose "
            "another directory for a new run"
        )


def _defaults(config: PretrainConfig, section: str) -> dict[str, Any]:
    """What a field is that the run did not know of when it began; a model's are in its file if they matter."""
    part = getattr(config, section, None)
    if section == "model" or not is_dataclass(part):
        return {}
    return {each.name: _plain(each.default) for each in fields(part) if each.default is not MISSING}


def _read(path: Path) -> dict[str, Any]:
    """precision, total_steps and config; TrainingError for a damaged file."""
    try:
        found = read_json(path)
    except ConfigError as error:
        raise TrainingError(f"{error}; put it back as it was, or choose another directory") from None
    config, steps = found.get("config"), found.get("total_steps")
    if found.get("precision") not in PRECISIONS or type(steps) is not int or not isinstance(config, dict):
        raise TrainingError(
            f"{path}: does not say precision, total_steps and config; put it back as it was, or choose another "
            "directory"
        )
    return found


def _check_settled(settled: dict[str, Any], config: PretrainConfig, corpus: Corpus, where: str) -> None:
    """TrainingError for a corpus, a length or a precision other than the run began with: none can change on the way."""
    train = config.train
    if settled.get("corpus", corpus.fingerprint) != corpus.fingerprint:  # older runs: the loader looks, at a checkpoint
        begun = settled["config"]["data"]["corpus"]
        raise TrainingError(
            f"{where}: the run began with another corpus, that was at {begun}, and {corpus.path} has other text; set "
            "data.corpus to where that one is now, or choose another directory for a new run"
        )
    before = settled["config"].get("train", {}).get("minutes")
    for name, asked, kept in (
        ("steps", train.steps, settled["total_steps"]),
        ("minutes", train.minutes, before),
        ("precision", None if train.precision == "auto" else train.precision, settled["precision"]),
    ):
        if asked not in (None, kept):
            raise TrainingError(
                f"{where}: the run began with {settled['total_steps']} steps in {settled['precision']}; train.{name} "
                f"{asked} cannot be had on the way: set it as it was, or choose another directory for a new run"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Decimal) else value
