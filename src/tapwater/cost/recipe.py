"""How a model is trained, as far as it changes memory and time."""

from collections.abc import Mapping
from dataclasses import dataclass

from tapwater.config import ModelConfig
from tapwater.cost.formats import WEIGHT_BITS, known
from tapwater.cost.layout import Layout, check_layout
from tapwater.cost.pipeline import SCHEDULES, check_schedule
from tapwater.errors import ConfigError

RECOMPUTATION: Mapping[str, str] = {
    "none": "every input of a product or a norm is kept",
    "selective": "norms, SwiGLU products and MLA's up-projections are computed again",
    "full": "of a layer only its input is kept",
}
OVERLAP: Mapping[str, str] = {
    "none": "devices wait for tokens on their way to experts and back",
    "shared_experts": "hidden as long as the shared experts compute (DeepSeek-V2 report section 3.1.3)",
    "all": "hidden as long as anything computes (DualPipe, DeepSeek-V3 report section 3.2.1)",
}
# Bytes a weight takes besides its own and its gradient: a float32 master, and moments: two in float32, two in bf16 (as
# DeepSeek-V3, report section 3.3.3), one in float32.
OPTIMIZER_BYTES: Mapping[str, int] = {"adamw": 12, "adamw_bf16": 8, "muon": 8}
PRECISIONS: Mapping[str, int] = {"bf16": 2, "fp8": 1}  # of products with weights; bytes of a token's number on its way


@dataclass(frozen=True)
class Recipe:
    """A training step: `batch` sequences of `sequence` tokens on all devices, `micro_batch` at a time on a replica.

    `communication_share` of a device's processors only moves tokens (V3: 20 of 132, report sections 3.2.2 and 3.5.1).
    Raises ConfigError for counts below 1 and for names not in SCHEDULES, RECOMPUTATION, OVERLAP, OPTIMIZER_BYTES,
    PRECISIONS or WEIGHT_BITS.
    """

    sequence: int
    batch: int
    micro_batch: int = 1
    schedule: str = "1f1b"
    recomputation: str = "none"
    overlap: str = "none"
    communication_share: float = 0.0
    optimizer: str = "adamw"
    precision: str = "bf16"
    weight_format: str = "bf16"
    gradient_format: str = "float32"

    def __post_init__(self) -> None:
        for name in ("sequence", "batch", "micro_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.communication_share < 1:
            raise ConfigError(
                f"training: communication_share must be at least 0 and below 1, got {self.communication_share}"
            )
        known(self.schedule, SCHEDULES, "pipeline schedule")
        known(self.recomputation, RECOMPUTATION, "recomputation")
        known(self.overlap, OVERLAP, "overlap")
        known(self.optimizer, OPTIMIZER_BYTES, "optimizer")
        known(self.precision, PRECISIONS, "training precision")
        known(self.weight_format, WEIGHT_BITS, "weight format")
        known(self.gradient_format, WEIGHT_BITS, "gradient format")

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.sequence

    def num_micro_batches(self, layout: Layout) -> int:
        """Per replica and step; ConfigError when the batch does not divide."""
        count, rest = divmod(self.batch, layout.dp * self.micro_batch)
        if rest:
            raise ConfigError(
                f"training: batch {self.batch} is not a multiple of dp {layout.dp} * micro_batch {self.micro_batch}"
            )
        if self.schedule == "dualpipe" and count % 2:
            raise ConfigError(f"schedule dualpipe needs an even number of micro-batches, got {count}")
        return count


def check_recipe(recipe: Recipe, config: ModelConfig, layout: Layout) -> None:
    """ConfigError for a recipe that this model on this layout cannot follow."""
    check_layout(layout, config)
    check_schedule(recipe.schedule, layout.pp)
    recipe.num_micro_batches(layout)
    if recipe.sequence > config.max_position_embeddings:
        raise ConfigError(
            f"training: sequence {recipe.sequence} exceeds the model's {config.max_position_embeddings} positions"
        )
