"""What a run measured, a line of JSON for every step and every evaluation: metrics.jsonl and evaluations.jsonl."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import takewhile
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from tapwater.errors import TrainingError

STEPS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
LOADS_EVERY = 20  # steps whose expert loads are added up in one line: V2's 160 experts in 59 layers take 60 kB


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step; `step` counts finished ones, from 1. Losses in nats per target, over the global batch.

    `load_LE` are the assignments to every expert of every MoE layer in this step, empty for a dense model.
    """

    step: int
    loss: float  # what was minimised: the others with their weights
    ce: float  # cross-entropy of the next token
    expert_loss: float
    device_loss: float
    communication_loss: float
    mtp_loss: float | None  # mean over depths, without its weight; None: the model has no such module
    lr: float
    grad_norm: float  # before clipping
    sequences: int
    tokens: int  # read so far by the run
    tokens_per_s: float
    mfu: float | None  # share of the measured peak
    seconds: float  # of this step
    cost_usd: Decimal | None  # of all the run's time so far; None: no rent is known
    load_LE: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Evaluation:
    """What held-out text said after `step`: bits per byte of every source, and of all bytes together."""

    step: int
    tokens: int
    bits_per_byte: float
    sources: Mapping[str, float]
    fim_exact: float | None = None  # share of infills got exactly; None: none were tried
    fim_exact_spm: float | None = None  # the same with the suffix before the prefix; None: not trained on


@dataclass(frozen=True)
class Filled:
    """A hole in held-out text with the lines around it, what stood there, and what the model wrote."""

    before: str
    wanted: str
    after: str
    wrote: str
    wrote_spm: str | None  # with the suffix before the prefix; None: not tried


@dataclass(frozen=True)
class LoadSummary:
    """How even one layer's experts were used: 1, 1 and 0 when perfectly."""

    max_over_mean: float
    min_over_mean: float
    unused: int  # experts without a token


def summarise(load_E: Sequence[int]) -> LoadSummary:
    """The summary of one layer's counts; of no assignments at all everything is 0 and every expert unused."""
    mean = sum(load_E) / len(load_E)
    unused = sum(count == 0 for count in load_E)
    return LoadSummary(max(load_E) / mean, min(load_E) / mean, unused) if mean else LoadSummary(0.0, 0.0, unused)


class MetricsLog:
    """Appends to a run's two files, each line flushed; for one process of the run. Close it, or use it with `with`.

    Lines after `resumed_step` are cut off first, with a last line that an interruption left unfinished, so that no
    step is ever there twice. Counts of every expert are summed over LOADS_EVERY steps and written with the last of
    them (`loads`: their number and the counts per layer); a resumed run starts a new sum.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._steps = _open_after(directory / STEPS, resumed_step)
        self._evaluations = _open_after(directory / EVALUATIONS, resumed_step)
        self._load_sum: list[list[int]] = []
        self._load_steps = 0

    def step(self, metrics: StepMetrics) -> None:
        """Write one step."""
        line: dict[str, Any] = {name: value for name, value in asdict(metrics).items() if name != "load_LE"}
        if metrics.load_LE:
            line["load"] = [asdict(summarise(load_E)) for load_E in metrics.load_LE]
            self._add(metrics.load_LE)
            if metrics.step % LOADS_EVERY == 0:
                line["loads"] = {"steps": self._load_steps, "counts": list(self._load_sum)}
                self._load_sum.clear()
                self._load_steps = 0
        _write(self._steps, line)

    def evaluation(self, evaluation: Evaluation, infills: Sequence[Filled]) -> None:
        """Write one evaluation, with the infills it tried."""
        _write(self._evaluations, {**asdict(evaluation), "infills": [asdict(each) for each in infills]})

    def close(self) -> None:
        for file in (self._steps, self._evaluations):
            with suppress(OSError):  # every line was flushed; one that could not be has been told of
                file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, load_LE: Sequence[Sequence[int]]) -> None:
        if not self._load_sum:
            self._load_sum = [[0] * len(load_E) for load_E in load_LE]
        pairs = zip(self._load_sum, load_LE, strict=True)
        self._load_sum = [[a + b for a, b in zip(sum_E, load_E, strict=True)] for sum_E, load_E in pairs]
        self._load_steps += 1


def read_steps(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as dictionaries; null where a number was not finite, cost_usd as text.

    An unfinished last line is left out: the run may still be writing. Raises TrainingError when there is no such file
    or a line before the last is damaged.
    """
    return _read(directory / STEPS)


def read_evaluations(directory: Path) -> list[dict[str, Any]]:
    """The lines of evaluations.jsonl, as `read_steps` reads those of metrics.jsonl."""
    return _read(directory / EVALUATIONS)


def _write(file: BinaryIO, line: Mapping[str, Any]) -> None:
    try:
        file.write(json.dumps(_plain(line), allow_nan=False, separators=(",", ":")).encode() + b"\n")
        file.flush()
    except OSError as error:
        raise TrainingError(
            f"{file.name}: cannot be written ({error.strerror}); make room, and the same command goes on from the "
            "newest checkpoint"
        ) from error


def _plain(value: Any) -> Any:
    """As JSON has it: money as text, since floats would round it; null for what is no finite number."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Decimal):
        return str(value)
    return None if isinstance(value, float) and not isfinite(value) else value


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            return [line for _, line in _lines(path, file)]
    except FileNotFoundError:
        raise TrainingError(f"{path}: there is no such file; is this the directory of a run?") from None


def _lines(path: Path, file: Iterable[bytes]) -> Iterable[tuple[int, dict[str, Any]]]:
    """Every whole line, with the offset where it ends."""
    end = 0
    for number, raw in enumerate(file, 1):
        if not raw.endswith(b"\n"):  # the writer was interrupted here
            return
        try:
            line = json.loads(raw)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError("not an object with a step")
        except ValueError as error:
            raise TrainingError(f"{path}: line {number} is damaged ({error}); remove it") from None
        end += len(raw)
        yield end, line


def _open_after(path: Path, resumed_step: int) -> BinaryIO:
    """The file, cut after the last whole line of a step up to `resumed_step`, to append to."""
    path.touch()
    with path.open("rb") as file:
        kept = takewhile(lambda each: each[1]["step"] <= resumed_step, _lines(path, file))
        end = max((end for end, _ in kept), default=0)
    out = path.open("r+b")
    out.truncate(end)
    out.seek(end)
    return out
