"""What `tapwater hardware measure` learns of a CPU machine: how long its kernels take for one of everything."""

from collections.abc import Mapping
from dataclasses import dataclass

from tapwater.errors import ConfigError


@dataclass(frozen=True)
class KernelRates:
    """Seconds, as `tapwater hardware measure` took them with `threads` threads.

    `weight_s[format][i]` is for one weight, read from memory and multiplied with `rows[i]` rows. Attention of generated
    tokens costs `grouped_s[cache][i]` or, absorbed, `absorbed_s[cache][i]` for each cached number that `heads[i]` query
    heads share, and `attend_s` a request and layer; that of prompts `prompt_mac_s[form]` for each multiplication. What
    none of these explains: `row_s` for each number of a hidden state in a layer, `layer_s`, `expert_s` for an expert
    that is touched, `logit_s`, and the engine's `step_s` and `request_s`. `drift`: by what share rounds differed.
    """

    instruction_set: str
    threads: int
    rows: tuple[int, ...]
    weight_s: Mapping[str, tuple[float, ...]]
    heads: tuple[int, ...]
    grouped_s: Mapping[str, tuple[float, ...]]
    absorbed_s: Mapping[str, tuple[float, ...]]
    attend_s: float
    prompt_mac_s: Mapping[str, float]
    row_s: float
    layer_s: float
    expert_s: float
    logit_s: float
    step_s: float
    request_s: float
    max_context: int
    drift: float = 0.0

    def __post_init__(self) -> None:
        for name, points in (("rows", self.rows), ("heads", self.heads)):
            if not points or list(points) != sorted(set(points)) or points[0] < 1:
                raise ConfigError(f"{name} must be positive and rise, got {list(points)}")
        for name, points in (("weight_s", self.rows), ("grouped_s", self.heads), ("absorbed_s", self.heads)):
            for format, times in getattr(self, name).items():
                if len(times) != len(points) or min(times) < 0:
                    raise ConfigError(f"{name}: {format} must have {len(points)} times of 0 or more, got {list(times)}")
        if set(self.prompt_mac_s) != {"grouped", "expanded"}:
            raise ConfigError(f"prompt_mac_s must have grouped and expanded, got {', '.join(self.prompt_mac_s)}")
