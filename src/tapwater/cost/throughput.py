"""Tokens per second of prefill and decode: from measured rates of our kernels where there are any, else a roofline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from tapwater.config import ModelConfig
from tapwater.cost.counts import parameters
from tapwater.cost.formats import Formats, weight_bytes
from tapwater.cost.hardware import Machine
from tapwater.cost.kernels import kernel_seconds, outside
from tapwater.cost.layout import Layout, check_layout
from tapwater.cost.roofline import device_work, exchange_s, roofline_parts, stages_s, sums_s
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
# But for its efficiencies a roofline is an upper bound. The low end is chosen by what was published over what we
# predict of it (`tapwater plan evidence`), down to the mean of a day in production, idle time included; nothing else
# tests it.
PUBLISHED = Interval(0.35, 1.1)
# Below this a layer is ruled by what a roofline leaves out. To send tokens to experts on eight devices and back takes
# 191 us however few they are (DeepEP's README, low-latency kernels: 77 + 114); ten launches of 5 us are assumed.
EXCHANGE_LATENCY_S = 200e-6
LAUNCHES_S = 50e-6
WAITING = "waiting for experts' tokens"


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


def decode(serving: Serving, batch: float, context: float) -> Estimate:
    """All devices together, `batch` requests generating, each with `context` cached tokens on average.

    `step_s` is the time per output token that a request sees. A pipeline works on pp shares of the batch at once; fewer
    requests than devices leave some idle.
    """
    _positive(batch=batch, context=context)
    layout = serving.layout

    def works(part: float) -> tuple[Work, Work]:
        local, group = _shares(layout, batch, part, least=1.0)
        return decode_work(serving.config, local, context), decode_work(serving.config, group, context)

    return _estimate(serving, batch, _step_parts(serving, works), works(1.0)[0].rows, context)


def prefill(
    serving: Serving, prompt_tokens: float, cached_tokens: float = 0.0, prompts: float | None = None
) -> Estimate:
    """All devices together, prompts of which `cached_tokens` are already cached; the rate counts the others.

    `step_s` is the time from start to first token of `prompts` that are computed together; None: as many as fill
    chunk_tokens on every replica, the way to the highest rate.
    """
    if not 0 <= cached_tokens < prompt_tokens:
        raise ConfigError(f"cached_tokens must be from 0 to below prompt_tokens {prompt_tokens}, got {cached_tokens}")
    layout = serving.layout
    new = prompt_tokens - cached_tokens
    together = full_prompts(serving, new) if prompts is None else prompts
    _positive(prompts=together)
    parts: dict[str, float] = {}
    done, rows = 0.0, 0.0
    while done < new:
        chunk, before = min(serving.chunk_tokens, new - done), cached_tokens + done

        def works(part: float, chunk: float = chunk, before: float = before) -> tuple[Work, Work]:
            local, group = _shares(layout, together, part, least=1 / chunk)
            return (
                prefill_work(serving.config, chunk, before, local),
                prefill_work(serving.config, chunk, before, group),
            )

        for part, seconds in _step_parts(serving, works).items():
            parts[part] = parts.get(part, 0.0) + seconds
        done, rows = done + chunk, max(rows, works(1.0)[0].rows)
    return _estimate(serving, new * together, parts, rows, prompt_tokens, steps=ceil(new / serving.chunk_tokens))


def full_prompts(serving: Serving, new_tokens: float) -> float:
    """Prompts that fill chunk_tokens on every replica and stage, the last of them in part; at least one each."""
    return max(1.0, serving.chunk_tokens / new_tokens) * serving.layout.dp * serving.layout.pp


def _shares(layout: Layout, requests: float, part: float, least: float) -> tuple[float, float]:
    """Of so many requests, a `part` of those of one replica and stage, and of those whose tokens meet at its experts.

    A whole request is on one replica, but a step may take a part of it, and experts get tokens: at the least one.
    """
    stage = requests / layout.pp
    local, group = max(1.0, stage / layout.dp), stage * layout.ep / (layout.dp * layout.tp)
    return max(least, part * local), max(least, part * group)


def _step_parts(serving: Serving, works: Callable[[float], tuple[Work, Work]]) -> dict[str, float]:
    """Seconds by part; `works` gives a replica's work and its experts' for a part of the step's requests.

    While tokens are on their way to experts and back a device waits, or computes the other half of the batch (V3
    report, section 3.4): two halves read all weights twice, so the quicker of both ways is taken.
    """
    machine, config = serving.machine, serving.config
    local, group = works(1.0)
    if machine.kernels is not None:
        return kernel_seconds(machine.kernels, config, local, serving.formats)
    whole = _computed_s(serving, local, group)
    exchange = exchange_s(machine, config, local.rows, serving.layout)
    if exchange == 0:
        return whole
    halves = {name: 2 * seconds for name, seconds in _computed_s(serving, *works(0.5)).items()}
    ways = whole | {WAITING: exchange}, halves | {WAITING: max(0.0, exchange - sum(halves.values()))}
    return min(ways, key=lambda parts: sum(parts.values()))


def _computed_s(serving: Serving, local: Work, group: Work) -> dict[str, float]:
    machine, config, layout = serving.machine, serving.config, serving.layout
    parts = roofline_parts(machine, config, device_work(local, group, layout), serving.formats, layout.tp)
    return {name: part.seconds for name, part in parts.items()} | {
        "tensor-parallel sums": sums_s(machine, config, local.rows, layout),
        "sent between stages": stages_s(machine, config, local.rows, layout),
    }


def _estimate(
    serving: Serving, tokens: float, parts: Mapping[str, float], rows: float, context: float, steps: int = 1
) -> Estimate:
    step = sum(parts.values())
    rate = tokens / step
    machine, config = serving.machine, serving.config
    if machine.kernels is not None:
        total = weight_bytes(serving.formats.weights, parameters(config).total)
        reasons = outside(machine.kernels, config, rows, context, total)
        interval = (MEASURED.widened() if reasons else MEASURED).drifting(machine.kernels.drift)
        return Estimate(rate, rate * interval.low, rate * interval.high, step, parts, tuple(reasons))
    reasons = ["rates as published, none measured with this software"]
    layer_s, latency_s = step / steps / config.num_hidden_layers, _latency_s(serving)
    if layer_s < latency_s:
        reasons.append(
            f"a layer takes {1e6 * layer_s:.0f} us: launches and latencies weigh more, which no roofline has"
        )
    slow = tokens / max(step, steps * config.num_hidden_layers * latency_s)
    return Estimate(rate, slow * PUBLISHED.low, rate * PUBLISHED.high, step, parts, tuple(reasons))


def _latency_s(serving: Serving) -> float:
    """What a layer takes at the least, roughly, however little it computes."""
    if serving.machine.kind == "cpu":
        return 0.0
    return EXCHANGE_LATENCY_S if serving.layout.ep > 1 or serving.layout.tp > 1 else LAUNCHES_S


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < 1e15:
            raise ConfigError(f"{name} must be a positive number, got {number}")
