"""The typed sections of a pretraining run, one TOML file; what each number was in published runs is beside it.

A field that is added later has a default, and that is what runs did before it: a run goes on though its run.json does
not know the field (train/settled.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any, Literal

from tapwater.config.huggingface import read_config
from tapwater.config.model import ModelConfig, model_fields
from tapwater.config.parse import apply_override, from_mapping, read_toml
from tapwater.config.presets import preset
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class DataSection:
    """What is read: a corpus that `tapwater data build` wrote."""

    corpus: str  # its directory
    sequence_length: int  # tokens of a row; V2 trained on 4096
    mixture: Mapping[str, float] = field(default_factory=dict)  # weight of each source; empty: by its tokens
    packing_buffer: int = 512  # pieces of documents that best-fit packing chooses from

    def __post_init__(self) -> None:
        _between(self, 2, 2**20, "sequence_length")
        _between(self, 1, 2**20, "packing_buffer")
        for source, weight in self.mixture.items():
            if not 0 < weight < inf:
                raise ConfigError(f"mixture: the weight of {source} must be above 0, got {weight}")


@dataclass(frozen=True)
class BatchSection:
    """Rows of a step over all processes; `micro_sequences` of them at a time in each."""

    sequences: int  # V2: 9216
    micro_sequences: int = 1
    ramp_from: int | None = None  # rows of the first step; V2: 2304
    ramp_steps: int = 0  # over which rows grow to `sequences`, by whole micro-batches of all processes

    def __post_init__(self) -> None:
        _between(self, 1, 2**20, "sequences", "micro_sequences")
        _between(self, 0, 2**40, "ramp_steps")
        if (self.ramp_from is None) != (self.ramp_steps == 0):
            raise ConfigError("ramp_from and ramp_steps must be given together")
        if self.ramp_from is not None and not 1 <= self.ramp_from <= self.sequences:
            raise ConfigError(f"ramp_from must be between 1 and sequences {self.sequences}, got {self.ramp_from}")


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW, or Muon for matrices and AdamW for the rest; defaults are V2's (report section 3.1.2) and Muon's own."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 2.4e-4  # of AdamW
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # of matrices; norms have none
    clip_norm: float = 1.0
    muon_lr: float = 0.02
    muon_momentum: float = 0.95

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "clip_norm", "muon_lr"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < inf:
            raise ConfigError(f"weight_decay must be at least 0, got {self.weight_decay}")


@dataclass(frozen=True)
class ScheduleSection:
    """The learning rate over steps: linear warm-up from 0, then `kind`."""

    kind: Literal["step", "wsd", "cosine", "constant"] = "step"
    warmup_steps: int = 2000
    step_at: tuple[float, ...] = (0.6, 0.9)  # step: shares of the run after which the rate drops
    step_factor: float = 0.316  # step: to this share of itself
    decay_share: float = 0.2  # wsd: the last share of the run falls linearly to final_share
    final_share: float = 0.1  # wsd, cosine: the last rate as a share of the highest

    def __post_init__(self) -> None:
        _between(self, 0, 2**40, "warmup_steps")
        if list(self.step_at) != sorted(self.step_at) or not all(0 < each < 1 for each in self.step_at):
            raise ConfigError(f"step_at must be rising shares between 0 and 1, got {list(self.step_at)}")
        for name in ("step_factor", "decay_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class BalanceConfig:
    """Weights of the losses and the devices they balance. V2 trained with the defaults (report section 3.1.2).

    V2-Lite: expert_alpha 0.001, others 0, one device. V3: expert_alpha 1e-4 and bias_step 0.001, no dropping.
    """

    expert_alpha: float = 0.003
    device_alpha: float = 0.05
    communication_alpha: float = 0.02
    num_devices: int = 8  # D: groups of neighbouring experts
    max_devices: int = 3  # M: devices a token is sent to at the most
    capacity_factor: float | None = None  # tokens a device takes, in units of the average; None: no dropping
    undropped_share: float = 0.1  # of the rows, of which no token is dropped
    bias_step: float = 0.0  # how far the loss-free bias moves after a step (V3); only with topk_method noaux_tc

    def __post_init__(self) -> None:
        if not 1 <= self.max_devices <= self.num_devices:
            raise ConfigError(
                f"balance: max_devices must be between 1 and num_devices, got {self.max_devices} of {self.num_devices}"
            )
        numbers = {"expert_alpha": self.expert_alpha, "device_alpha": self.device_alpha, "bias_step": self.bias_step}
        numbers |= {"communication_alpha": self.communication_alpha, "capacity_factor": self.capacity_factor or 0.0}
        for name, value in numbers.items():
            if not 0 <= value < inf:
                raise ConfigError(f"balance: {name} must be a finite number of at least 0, got {value}")
        if not 0 <= self.undropped_share <= 1:
            raise ConfigError(f"balance: undropped_share must be between 0 and 1, got {self.undropped_share}")


@dataclass(frozen=True)
class ParallelSection:
    """Processes: dp * pp of them; ep divides dp, and a process holds n_routed_experts / ep experts of a layer."""

    dp: int = 1
    ep: int = 1
    pp: int = 1
    schedule: Literal["1f1b", "interleaved", "interleaved_zero_bubble", "zbv"] = "1f1b"  # of pp
    stages_per_process: int = 1  # of pp: above 1 for all schedules but 1f1b

    def __post_init__(self) -> None:
        _between(self, 1, 2**20, "dp", "ep", "pp", "stages_per_process")
        if self.dp % self.ep:
            raise ConfigError(f"ep {self.ep} does not divide dp {self.dp}")
        if self.pp == 1 and (self.schedule != "1f1b" or self.stages_per_process != 1):
            raise ConfigError(
                f"schedule {self.schedule} with stages_per_process {self.stages_per_process} needs pp of at least 2"
            )

    @property
    def processes(self) -> int:
        return self.dp * self.pp


@dataclass(frozen=True)
class CheckpointSection:
    """When the state of training is written, and what is kept of it."""

    every_steps: int = 500
    keep_last: int = 2
    keep_best: bool = True  # besides the last ones; by held-out bits per byte of evaluation.sequences rows a source
    asynchronous: bool = True  # training goes on while files are written

    def __post_init__(self) -> None:
        _between(self, 1, 2**40, "every_steps", "keep_last")


@dataclass(frozen=True)
class EvaluationSection:
    """What is measured while training, on text no step has seen."""

    every_steps: int = 250
    sequences: int = 32  # rows of each source; a last evaluation takes all
    fim_documents: int = 0  # infills tried per evaluation; 0: none
    fim_max_tokens: int = 32  # longest middle
    fim_context: int | None = None  # most tokens of prompt and middle together; None: a row

    def __post_init__(self) -> None:
        _between(self, 1, 2**40, "every_steps", "sequences", "fim_max_tokens")
        _between(self, 0, 2**20, "fim_documents")
        if self.fim_context is not None:
            _between(self, 1, 2**40, "fim_context")


@dataclass(frozen=True)
class SpikeSection:
    """A loss spike: above the mean of the last `window` steps by `deviations` standard deviations, `patience` steps.

    Training then goes back to the newest checkpoint before it and skips the batches that led to it.
    """

    window: int = 0  # 0: spikes are not looked for
    deviations: float = 6.0
    patience: int = 3
    max_rewinds: int = 5  # more end the run with an error

    def __post_init__(self) -> None:
        _between(self, 0, 2**20, "window")
        _between(self, 1, 2**20, "patience", "max_rewinds")
        if self.window == 1 or not 0 < self.deviations < inf:
            raise ConfigError(f"spikes: window {self.window} must not be 1, deviations {self.deviations} above 0")


@dataclass(frozen=True)
class TrainSection:
    """How long and in what arithmetic. Of `steps` and `minutes` one is given; minutes become steps at the start."""

    directory: str  # of the run: metrics, checkpoints, export
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    threads: int = 0  # of each process; 0: one per core
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: whichever takes less time here
    recomputation: Literal["none", "selective", "full"] = "none"
    mtp_weight: float = 0.3  # lambda of multi-token prediction (V3 report section 4.2)
    machine: str | None = None  # in `tapwater hardware list`: its rent is the cost of the run
    usd_per_hour: Decimal | None = None  # rent of all machines of the run, instead

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError("train: give steps or minutes, one of them")
        if self.steps is not None:
            _between(self, 1, 2**40, "steps")
        if self.minutes is not None and not 0 < self.minutes < inf:
            raise ConfigError(f"train: minutes must be above 0, got {self.minutes}")
        _between(self, 0, 2**31 - 1, "seed")
        _between(self, 0, 1024, "threads")
        if not 0 <= self.mtp_weight < inf:
            raise ConfigError(f"train: mtp_weight must be at least 0, got {self.mtp_weight}")
        if self.usd_per_hour is not None and not 0 <= self.usd_per_hour < 10**9:
            raise ConfigError(f"train: usd_per_hour must be at least 0, got {self.usd_per_hour}")
        if self.machine is not None and self.usd_per_hour is not None:
            raise ConfigError("train: give machine or usd_per_hour, not both")


@dataclass(frozen=True)
class InitSection:
    """Weights to start from instead of random ones: a Hugging Face directory, such as a run's export."""

    checkpoint: str | None = None


@dataclass(frozen=True)
class PretrainConfig:
    """Everything `tapwater train` is told."""

    model: ModelConfig
    data: DataSection
    batch: BatchSection
    train: TrainSection
    init: InitSection = field(default_factory=InitSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    spikes: SpikeSection = field(default_factory=SpikeSection)

    def __post_init__(self) -> None:
        model, per_round = self.model, self.batch.micro_sequences * self.parallel.dp
        if self.data.sequence_length > model.max_position_embeddings:
            raise ConfigError(
                f"data: sequence_length {self.data.sequence_length} is more than the model's "
                f"max_position_embeddings {model.max_position_embeddings}"
            )
        for name in ("sequences", "ramp_from"):
            rows = getattr(self.batch, name)
            if rows is not None and rows % per_round:
                raise ConfigError(
                    f"batch: {name} {rows} is not a multiple of micro_sequences {self.batch.micro_sequences} * dp "
                    f"{self.parallel.dp}"
                )
        if self.balance.bias_step and model.topk_method != "noaux_tc":
            raise ConfigError(f"balance: bias_step needs topk_method noaux_tc, the model has {model.topk_method}")
        if model.is_moe and model.moe.n_routed_experts % self.parallel.ep:
            raise ConfigError(
                f"parallel: ep {self.parallel.ep} does not divide n_routed_experts {model.moe.n_routed_experts}"
            )
        if model.is_moe and model.moe.n_routed_experts % self.balance.num_devices:
            raise ConfigError(
                f"balance: num_devices {self.balance.num_devices} does not divide n_routed_experts "
                f"{model.moe.n_routed_experts}"
            )
        if not model.is_moe and self.parallel.ep > 1:
            raise ConfigError(f"parallel: ep {self.parallel.ep} needs a model with experts")


def load_pretrain(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """PretrainConfig from a TOML file and `section.key=value` overrides, later ones winning.

    The table `model` may name a `preset`, or leave out what `init.checkpoint` says; its other fields go before those.
    Raises ConfigError for a missing or malformed file, an unknown section or key (naming the nearest) or a wrong type.
    """
    values = read_toml(path)
    for override in overrides:
        apply_override(values, override)
    return from_tables(values, str(path))


def from_tables(values: Mapping[str, Any], where: str) -> PretrainConfig:
    """PretrainConfig from the tables of a file, as load_pretrain makes it; `where` names them in errors."""
    return from_mapping(PretrainConfig, {**values, "model": _model(values, where)}, where)


def _model(values: Mapping[str, Any], where: str) -> ModelConfig:
    table = values.get("model", {})
    init = values.get("init", {})
    if not isinstance(table, Mapping) or not isinstance(init, Mapping):
        raise ConfigError(f"{where}: model and init are tables of fields")
    base: dict[str, Any] = {}
    name, checkpoint = table.get("preset"), init.get("checkpoint")
    if name is not None and checkpoint is not None:
        raise ConfigError(f"{where}: the model comes from model.preset or from init.checkpoint, not both")
    if name is not None:
        base = model_fields(preset(str(name)))
    if checkpoint is not None:
        base = model_fields(read_config(Path(str(checkpoint)) / "config.json"))
    own = {key: value for key, value in table.items() if key != "preset"}
    return from_mapping(ModelConfig, base | own, f"{where}: model")


def _between(section: object, low: int, high: int, *names: str) -> None:
    for name in names:
        if not low <= getattr(section, name) <= high:
            raise ConfigError(f"{name} must be between {low} and {high}, got {getattr(section, name)}")
