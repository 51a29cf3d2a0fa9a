"""Everything a run is at one step, for a checkpoint to keep and to give back."""

from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tapwater.checkpoint.train_state import optimizer_state
from tapwater.config import PretrainConfig, read_json
from tapwater.config.model import to_plain
from tapwater.errors import ConfigError, TrainingError
from tapwater.model import Transformer
from tapwater.parallel import World, as_pieces
from tapwater.train.masters import Masters
from tapwater.train.probe import PRECISIONS

# What may change when a run goes on: where and how it is computed, watched and kept; not what it computes. Steps,
# minutes and precision were settled when it began: `check_settled` refuses others.
FREE = {"train": {"directory", "threads", "machine", "usd_per_hour", "recomputation", "minutes", "steps", "precision"},
        "parallel": None, "checkpoint": None, "evaluation": None, "spikes": None,
        "batch": {"micro_sequences"}}  # fmt: skip


def tensors_of(
    model: Transformer, masters: Masters, optimizers: Sequence[Optimizer], world: World
) -> dict[str, Tensor]:
    """Weights, routing biases and the optimizers' state, by global names; the tensors themselves, to fill in place."""
    weights = {**masters.by_name(), **dict(model.named_buffers())}
    found = {f"model.{name}": each for name, each in as_pieces(model, world, weights).items()}
    for name, held in optimizer_state(masters.named, optimizers).items():
        for key, value in held.items():
            found[f"optimizer.{name}.{key}"] = as_pieces(model, world, {name: value})[name]
    return found


def plain(config: PretrainConfig) -> dict[str, Any]:
    """The settings of a run as plain JSON, money as text."""
    values = asdict(config) | {"model": to_plain(config.model)}
    return _plain(values)


def read_settled(path: Path) -> dict[str, Any]:
    """What a run settled when it began: precision, total_steps and config; TrainingError for a damaged file."""
    try:
        found = read_json(path)
    except ConfigError as error:
        raise TrainingError(f"{error}; put it back as it was, or choose another train.directory") from None
    config, steps = found.get("config"), found.get("total_steps")
    if found.get("precision") not in PRECISIONS or type(steps) is not int or not isinstance(config, dict):
        raise TrainingError(
            f"{path}: does not say precision, total_steps and config; put it back as it was, or choose another "
            "train.directory"
        )
    return found


def check_settled(settled: dict[str, Any], config: PretrainConfig, where: str) -> None:
    """TrainingError for a length or a precision other than the run began with: neither can change on the way."""
    train = config.train
    before = settled["config"].get("train", {}).get("minutes")
    for name, asked, kept in (
        ("steps", train.steps, settled["total_steps"]),
        ("minutes", train.minutes, before),
        ("precision", None if train.precision == "auto" else train.precision, settled["precision"]),
    ):
        if asked not in (None, kept):
            raise TrainingError(
                f"{where}: the run began with {settled['total_steps']} steps in {settled['precision']}; train.{name} "
                f"{asked} cannot be had on the way: set it as it was, or choose another train.directory for a new run"
            )


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
        before, now = saved.get(section) or {}, own.get(section) or {}
        names = (before.keys() | now.keys()) - free
        changed += [f"{section}.{name}" for name in sorted(names) if before.get(name) != now.get(name)]
    if changed:
        raise TrainingError(
            f"{where}: the run began with other settings of {', '.join(changed)}; set them as they were, or choose "
            "another train.directory for a new run"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Decimal) else value
