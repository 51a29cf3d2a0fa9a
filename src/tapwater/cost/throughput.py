"""Tokens per second of prefill and decode: from measured rates of our kernels where there are any, else a roofline."""

from collections.abc import Mapping
from dataclasses import dataclass

from tapwater.config import ModelConfig
from tapwater.cost.counts import parameters
from tapwater.cost.formats import Formats, weight_bytes
from tapwater.cost.hardware import Machine
from tapwater.cost.kernels import kernel_seconds, outside
from tapwater.cost.layout import Layout, check_layout
from tapwater.cost.roofline import communication_s, device_work, roofline_parts, stages_s
from tapwater.cost.work import Work, decode_work, prefill_work
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """Between which shares of a predicted rate the truth is to be expected."""

    low: float
    high: float

    def widened(self) -> "Interval":
        """Twice as far from the prediction, in proportion: for what lies outside the range that was measured."""
        return Interval(self.low**2, self.high**2)

    def drifting(self, drift: float) -> "Interval":
        """On a machine whose own speed differed by that share while it was measured."""
        return Interval(self.low / (1 + drift), self.high * (1 + drift))


# The worst of bench/plan_error.py, on the machine whose kernels were measured just before.
MEASURED = Interval(0.75, 1.3)
# What was published over what we predict of it (`tapwater plan evidence`): from 0.39, the mean of a day in use,
# idle time included, to 0.96 of the prediction.
PUBLISHED = Interval(0.35, 1.35)


@dataclass(frozen=True)
class Serving:
    """A model, how it is kept, and the devices it is spread over; prompts are computed `chunk_tokens` at a time."""

    config: ModelConfig
    machine: Machine
    formats: Formats
    layout: Layout = Layout()  # noqa: RUF009 - frozen
    chunk_tokens: int = 512

    def __post_init__(self) -> None:
        check_layout(self.layout, self.config)
        if self.chunk_tokens < 1:
            raise ConfigError(f"chunk_tokens must be at least 1, got {self.chunk_tokens}")
        if self.machine.kernels is not None and self.layout.devices > 1:
            raise ConfigError(f"{self.machine.name} was measured alone: its layout is one device, not {self.layout}")


@dataclass(frozen=True)
class Estimate:
    """A predicted rate: `low`..`high` is where the truth is to be expected, `extrapolated` says what goes beyond what
    was measured; `parts` add up to `step_s`, but for what is computed while it is sent."""

    tokens_per_s: float
    low: float
    high: float
    step_s: float
    parts: Mapping[str, float]
    extrapolated: tuple[str, ...]

    @property
    def slowest(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])


def decode(serving: Serving, batch: float, context: float) -> Estimate:
    """All devices together, `batch` requests generating, each with `context` cached tokens on average.

    `step_s` is the time per output token that a request sees. A pipeline works on pp shares of the batch at once.
    """
    _positive(batch=batch, context=context)
    layout = serving.layout
    share = max(1.0, batch / layout.pp)  # a request is never in two places: fewer than devices leave some idle
    copies = layout.dp * layout.tp / layout.ep
    local = decode_work(serving.config, max(1.0, share / layout.dp), context)
    group = decode_work(serving.config, max(1.0, share / copies), context)
    parts = _step_parts(serving, local, group)
    return _estimate(serving, batch, parts, local.rows, context)


def prefill(serving: Serving, prompt_tokens: float, cached_tokens: float = 0.0) -> Estimate:
    """All devices together, prompts of which `cached_tokens` are already cached; the rate counts the others.

    Prompts shorter than chunk_tokens are computed together. `step_s` is the time from start to first token.
    """
    if not 0 <= cached_tokens < prompt_tokens:
        raise ConfigError(f"cached_tokens must be from 0 to below prompt_tokens {prompt_tokens}, got {cached_tokens}")
    layout = serving.layout
    new = prompt_tokens - cached_tokens
    requests = max(1.0, serving.chunk_tokens // new)
    copies = layout.dp * layout.tp / layout.ep
    parts: dict[str, float] = {}
    done, rows = 0.0, 0.0
    while done < new:
        chunk = min(serving.chunk_tokens, new - done)
        local = prefill_work(serving.config, chunk, cached_tokens + done, requests)
        group = prefill_work(serving.config, chunk, cached_tokens + done, requests * layout.dp / copies)
        for part, seconds in _step_parts(serving, local, group).items():
            parts[part] = parts.get(part, 0.0) + seconds
        done, rows = done + chunk, max(rows, local.rows)
    return _estimate(serving, new * requests * layout.dp * layout.pp, parts, rows, prompt_tokens)


def _step_parts(serving: Serving, local: Work, group: Work) -> dict[str, float]:
    machine, config, layout = serving.machine, serving.config, serving.layout
    if machine.kernels is not None:
        return kernel_seconds(machine.kernels, config, local, serving.formats)
    work = device_work(local, group, layout)
    parts = roofline_parts(machine, config, work, serving.formats, layout.tp)
    sums, experts = communication_s(machine, config, local.rows, layout)
    seconds = {name: part.seconds for name, part in parts.items()} | {"tensor-parallel sums": sums}
    # two halves of a batch take turns: one computes while the other's tokens are on their way to experts (V3, 3.4)
    hidden = sum(seconds.values()) if local.rows >= 2 else 0.0
    seconds["waiting for experts' tokens"] = max(0.0, experts - hidden)
    seconds["sent between stages"] = stages_s(machine, config, local.rows, layout)
    return seconds


def _estimate(serving: Serving, tokens: float, parts: Mapping[str, float], rows: float, context: float) -> Estimate:
    step = sum(parts.values())
    rate = tokens / step
    machine = serving.machine
    if machine.kernels is None:
        reasons, interval = ["rates as published, none measured with this software"], PUBLISHED
    else:
        total = weight_bytes(serving.formats.weights, parameters(serving.config).total)
        reasons = outside(machine.kernels, rows, context, total)
        interval = (MEASURED.widened() if reasons else MEASURED).drifting(machine.kernels.drift)
    return Estimate(rate, rate * interval.low, rate * interval.high, step, parts, tuple(reasons))


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < 1e15:
            raise ConfigError(f"{name} must be a positive number, got {number}")
