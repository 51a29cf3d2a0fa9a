"""Everything a run is at one step, for a checkpoint to keep and to give back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tapwater.checkpoint.train_state import optimizer_state
from tapwater.model import Transformer
from tapwater.parallel import World, as_pieces
from tapwater.train.masters import Masters
from tapwater.train.metrics import Evaluation


@dataclass(frozen=True)
class Moment:
    """Where a run is after `step` steps, all but its tensors; the last three are plain JSON of who has that state."""

    step: int
    tokens: int  # read so far
    elapsed_s: float
    evaluation: Evaluation | None  # the last one
    loader: dict[str, Any]
    detector: dict[str, Any]
    random: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """As plain JSON, without the step."""
        return {name: value for name, value in asdict(self).items() if name != "step"}

    @classmethod
    def of(cls, step: int, facts: Mapping[str, Any]) -> "Moment":
        """From its facts; others beside them do no harm."""
        evaluation = Evaluation(**facts["evaluation"]) if facts["evaluation"] else None
        states = (facts[name] for name in ("loader", "detector", "random"))
        return cls(step, facts["tokens"], facts["elapsed_s"], evaluation, *states)


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
