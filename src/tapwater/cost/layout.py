"""How a model is spread over devices."""

import re
from dataclasses import dataclass

from tapwater.config import ModelConfig
from tapwater.config.parse import nearest
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """`dp * tp * pp` devices: every pipeline stage (pp) holds its layers dp times, each copy split over tp devices.

    Routed experts are not copied: those of a layer are spread over `ep` of the stage's dp * tp devices, so ep = dp * tp
    holds each once. Grouped attention splits its cache over tp devices up to num_key_value_heads; MLA's latent belongs
    to all heads and is copied tp times, which is why it is served with tp = 1 (data-parallel attention).
    """

    dp: int = 1
    tp: int = 1
    ep: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "ep", "pp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"layout: {name} must be at least 1, got {getattr(self, name)}")
        if self.dp * self.tp % self.ep:
            raise ConfigError(f"layout: ep {self.ep} does not divide dp * tp = {self.dp * self.tp}")

    @property
    def devices(self) -> int:
        return self.dp * self.tp * self.pp

    def __str__(self) -> str:
        return (
            " ".join(f"{name}{size}" for name in ("dp", "tp", "ep", "pp") if (size := getattr(self, name)) > 1) or "1"
        )


AXES = ("dp", "tp", "ep", "pp")


def parse_layout(text: str) -> Layout:
    """Read "dp8 ep8 pp2"; axes left out are 1, and "1" is one device. ConfigError names the axis that is wrong."""
    sizes: dict[str, int] = {}
    for word in [] if text.strip() == "1" else text.split() or [text]:
        found = re.fullmatch(r"([a-z]*)([0-9]{0,6})", word)
        axis, size = found.groups() if found else (word, "")
        if axis not in AXES:
            raise ConfigError(f"layout {text!r}: no axis {axis!r}{nearest(axis, list(AXES))}; known: {', '.join(AXES)}")
        if not size:
            raise ConfigError(f"layout {text!r}: {axis} has no size; write {axis}8")
        if axis in sizes:
            raise ConfigError(f"layout {text!r}: {axis} is there twice")
        sizes[axis] = int(size)
    return Layout(**sizes)


def check_layout(layout: Layout, config: ModelConfig) -> None:
    """ConfigError naming the axis for a layout that this model cannot have."""
    if layout.pp > config.num_hidden_layers:
        raise ConfigError(f"layout: pp {layout.pp} exceeds the model's {config.num_hidden_layers} layers")
    if config.num_attention_heads % layout.tp:
        raise ConfigError(f"layout: tp {layout.tp} does not divide the model's {config.num_attention_heads} heads")
    if layout.ep > 1 and not config.is_moe:
        raise ConfigError(f"layout: ep {layout.ep}, but a dense model has no experts to spread")
    if config.is_moe and layout.ep > config.moe.n_routed_experts:
        raise ConfigError(f"layout: ep {layout.ep} exceeds the model's {config.moe.n_routed_experts} routed experts")
