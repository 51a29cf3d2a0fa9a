"""What the finished runs of an ablation say: every variant's figures over its seeds, and what a loss cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import atan, cos, isfinite, nan, pi, sin, sqrt
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from tapwater.cost.counts import parameters
from tapwater.train.ablation import diverged, is_finished
from tapwater.train.ablation_plan import Plan, Planned, run_directory
from tapwater.train.clock import rent
from tapwater.train.metrics import read_evaluations, read_steps

SMOOTHED_SHARE = 0.05  # of a run's steps, over whose losses the mean is taken: single steps differ by their text
SMOOTHED_STEPS = 10  # at the least
KV_BYTES = 2  # of a cached number, as bfloat16

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A figure of every finished seed, their mean and the standard deviation of a sample (None of a single one)."""

    seeds: Mapping[int, float]

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def mean(self) -> float:
        return fmean(self.seeds.values())

    @property
    def deviation(self) -> float | None:
        if self.n < 2:
            return None
        return stdev(self.seeds.values()) if all(map(isfinite, self.seeds.values())) else nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the true mean is with 95%, by Student's t; None of a single seed."""
        if self.deviation is None:
            return None
        off = t_quantile(self.n - 1) * self.deviation / sqrt(self.n)
        return self.mean - off, self.mean + off

    def minus(self, other: "Spread") -> "Spread | None":
        """Differences of the seeds both have: a seed reads the same text in the same order. None without any."""
        both = {seed: value - other.seeds[seed] for seed, value in self.seeds.items() if seed in other.seeds}
        return Spread(both) if both else None


@dataclass(frozen=True)
class Curve:
    """The mean over seeds of the smoothed loss after each step, and of tokens and seconds until then."""

    loss: Numbers
    tokens: Numbers
    seconds: Numbers


@dataclass(frozen=True)
class Reached:
    """Tokens, seconds of steps and mean rent until the smoothed loss was at the target, of the seeds that got there."""

    tokens: Spread
    seconds: Spread
    cost_usd: Decimal | None


@dataclass(frozen=True)
class Result:
    """A variant's finished runs; losses are cross-entropies of the next token, in nats."""

    name: str
    parameters: int  # without those of multi-token prediction
    active_parameters: int  # a token is multiplied with: without the input embedding
    mtp_parameters: int
    flops_per_token: float
    kv_bytes_per_token: int
    steps: int
    budget_share: float  # that its whole steps were planned to spend
    tokens: float  # predicted by a run
    loss: Spread  # at the end, smoothed
    bits_per_byte: Spread
    sources: Mapping[str, Spread]  # bits per byte of each
    tokens_per_s: Spread
    seconds: Spread  # of steps
    cost_usd: Decimal | None  # rent of a run's steps, the mean
    reached: Reached | None  # None: by no seed
    curve: Curve


@dataclass(frozen=True)
class Results:
    """`unfinished` are variants without a finished run, `diverged` says which seeds ended without a number, and why.

    `target_loss` is None when no loss is a finite number.
    """

    target_loss: float | None
    results: Sequence[Result]
    unfinished: Sequence[str]
    diverged: Sequence[str]


def collect(
    plan: Plan, directory: Path, seeds: int, target_loss: float | None, usd_per_hour: Decimal | None
) -> Results:
    """The results of what is finished; without a given target it is the worst run's last loss, which all came to."""
    done = {each.name: [seed for seed in range(seeds) if is_finished(directory, each.name, seed)]
            for each in plan.variants}  # fmt: skip
    planned = [each for each in plan.variants if done[each.name]]
    runs = {each.name: [_Lines(directory, each, seed) for seed in done[each.name]] for each in planned}
    curves = {name: _mean_curve([each.curve for each in lines]) for name, lines in runs.items()}
    if target_loss is None:
        last = [float(each.curve.loss[-1]) for lines in runs.values() for each in lines]
        target_loss = max((each for each in last if np.isfinite(each)), default=None)
    found = [
        _result(each, runs[each.name], curves[each.name], target_loss, usd_per_hour)
        for each in planned
    ]  # fmt: skip
    lost = {(each.name, seed): diverged(directory, each.name, seed) for each in plan.variants for seed in range(seeds)}
    told = [f"{name}, seed {seed}: {why}" for (name, seed), why in lost.items() if why is not None]
    return Results(target_loss, found, [name for name, numbers in done.items() if not numbers], told)


def smoothed(losses: Numbers) -> Numbers:
    """The mean of each loss and those before it, SMOOTHED_SHARE of them all; of fewer where there are not so many."""
    window = max(SMOOTHED_STEPS, round(SMOOTHED_SHARE * len(losses)))
    sums = np.concatenate(([0.0], np.cumsum(losses)))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def reach(curve: Curve, target_loss: float) -> tuple[float, float] | None:
    """Tokens and seconds from where on a curve stays at the target or below, straight lines between steps.

    None when it ends above. A step of easy text may bring even a smoothed loss below it for a while: that is not to
    have learned it.
    """
    above = np.flatnonzero(~(curve.loss <= target_loss))
    after = int(above[-1]) + 1 if above.size else 0
    if after == len(curve.loss):
        return None
    share, before = 1.0, after
    if after > 0:
        before = after - 1
        share = float((curve.loss[before] - target_loss) / (curve.loss[before] - curve.loss[after]))
    tokens, seconds = (
        float(values[before] + share * (values[after] - values[before])) for values in (curve.tokens, curve.seconds)
    )
    return tokens, seconds


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t: its integral from 0, in closed form for whole degrees, found by halving.

    Abramowitz and Stegun 26.7.3 and 26.7.4.
    """

    def within(t: float) -> float:
        angle = atan(t / sqrt(freedom))
        term = total = 1.0 if freedom % 2 == 0 else cos(angle)
        for k in range(freedom % 2 + 2, freedom, 2):
            term *= cos(angle) ** 2 * (k - 1) / k
            total += term
        if freedom % 2 == 0:
            return sin(angle) * total
        return 2 / pi * (angle + (sin(angle) * total if freedom > 1 else 0.0))

    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return high


class _Lines:
    """One finished run's metrics."""

    def __init__(self, directory: Path, planned: Planned, seed: int) -> None:
        path = run_directory(directory, planned.name, seed)
        steps, evaluations = read_steps(path), read_evaluations(path)
        self.seed = seed
        losses = np.array([float("nan") if each["ce"] is None else each["ce"] for each in steps])
        self.curve = Curve(
            smoothed(losses),
            np.array([float(each["tokens"]) for each in steps]),
            np.cumsum([float(each["seconds"]) for each in steps]),
        )
        last = evaluations[-1]
        self.bits_per_byte = _number(last["bits_per_byte"])
        self.sources = {source: _number(value) for source, value in last["sources"].items()}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """All finished seeds of a variant have the plan's steps."""
    columns = [[vars(each)[name] for each in curves] for name in ("loss", "tokens", "seconds")]
    return Curve(*(np.mean(each, axis=0) for each in columns))


def _reached(lines: Sequence[_Lines], target_loss: float, usd_per_hour: Decimal | None) -> Reached | None:
    found = {each.seed: there for each in lines if (there := reach(each.curve, target_loss)) is not None}
    if not found:
        return None
    seconds = Spread({seed: there[1] for seed, there in found.items()})
    tokens = Spread({seed: there[0] for seed, there in found.items()})
    return Reached(tokens, seconds, rent(seconds.mean, usd_per_hour))


def _result(
    planned: Planned, lines: Sequence[_Lines], curve: Curve, target_loss: float | None, usd_per_hour: Decimal | None
) -> Result:
    model = planned.config.model
    counted = parameters(model)
    seconds = Spread({each.seed: float(each.curve.seconds[-1]) for each in lines})
    return Result(
        name=planned.name,
        parameters=counted.total,
        active_parameters=counted.active_without_input_embedding,
        mtp_parameters=counted.mtp,
        flops_per_token=planned.flops_per_token,
        kv_bytes_per_token=KV_BYTES * model.kv_elements_per_token,
        steps=len(curve.loss),
        budget_share=planned.budget_share,
        tokens=float(curve.tokens[-1]),
        loss=Spread({each.seed: float(each.curve.loss[-1]) for each in lines}),
        bits_per_byte=Spread({each.seed: each.bits_per_byte for each in lines}),
        sources={name: Spread({each.seed: each.sources[name] for each in lines}) for name in lines[0].sources},
        tokens_per_s=Spread({each.seed: float(each.curve.tokens[-1] / each.curve.seconds[-1]) for each in lines}),
        seconds=seconds,
        cost_usd=rent(seconds.mean, usd_per_hour),
        reached=None if target_loss is None else _reached(lines, target_loss, usd_per_hour),
        curve=curve,
    )
