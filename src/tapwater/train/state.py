"""Everything a run is at one step, for a checkpoint to keep and to give back."""

from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tapwater.checkpoint.train_state import optimizer_state
from tapwater.config import PretrainConfig
from tapwater.config.model import to_plain
from tapwater.errors import TrainingError
from tapwater.model import Transformer
from tapwater.parallel import World, as_pieces
from tapwater.train.masters import Masters

# What may change when a run goes on: where and how it is computed, watched and kept; not what it computes.
FREE = {"train": {"directory", "threads", "machine", "usd_per_hour", "recomputation", "minutes", "steps", "precision"},
        "parallel": None, "checkpoint": None, "evaluation": None, "batch": {"micro_sequences"}}  # fmt: skip


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


def check_same(saved: dict[str, Any], config: PretrainConfig, where: str) -> None:
    """TrainingError naming every setting that differs from those the run began with, but for FREE ones."""
    own = plain(config)
    changed: list[str] = []
    for section in sorted(own.keys() | saved.keys()):
        free = FREE.get(section, set())
        if free is None:
            continue
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
