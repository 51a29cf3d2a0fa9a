"""What the metrics of a run say about it: curves, how experts were used, and what it learned beyond simple models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from tapwater.data import baselines

Line = Mapping[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class LoadWindow:
    """Assignments to every expert of every MoE layer, summed over `steps` steps that end with `step`."""

    step: int
    steps: int
    counts_LE: Sequence[Sequence[int]]


@dataclass(frozen=True)
class DeadExpert:
    """An expert that no token chose from `first_step` to `last_step`, whole windows all of them."""

    layer: int
    expert: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class Gap:
    """Held-out bits per byte of the model and of a simple one on the same text; `gap` above 0: ours is better."""

    source: str
    baseline: str
    baseline_bits: float
    model_bits: float

    @property
    def gap(self) -> float:
        return self.baseline_bits - self.model_bits


def curve(lines: Sequence[Line], name: str) -> list[Point]:
    """(step, value) of one number, where it is known and finite."""
    found = ((line["step"], line.get(name)) for line in lines)
    return [(float(step), float(value)) for step, value in found if value is not None and isfinite(float(value))]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: neighbours averaged, so that no part of a long curve is left out."""
    if len(points) <= most:
        return list(points)
    parts = [points[index * len(points) // most : (index + 1) * len(points) // most] for index in range(most)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def imbalance(lines: Sequence[Line]) -> dict[int, list[Point]]:
    """Per MoE layer the busiest expert's load over the mean, step by step."""
    found: dict[int, list[Point]] = {}
    for line in lines:
        for layer, load in enumerate(line.get("load", ())):
            found.setdefault(layer, []).append((float(line["step"]), float(load["max_over_mean"])))
    return found


def load_windows(lines: Sequence[Line]) -> list[LoadWindow]:
    """The sums of expert loads that the run wrote, in order."""
    found = ((line["step"], line["loads"]) for line in lines if "loads" in line)
    return [LoadWindow(step, loads["steps"], loads["counts"]) for step, loads in found]


def relative_load(windows: Sequence[LoadWindow], layer: int) -> list[list[float]]:
    """[experts][windows] of one layer: an expert's load over the mean of its layer; 1 is even."""
    columns = []
    for window in windows:
        counts = window.counts_LE[layer]
        mean = sum(counts) / len(counts)
        columns.append([count / mean if mean else 0.0 for count in counts])
    return [list(row) for row in zip(*columns, strict=True)]


def dead_experts(windows: Sequence[LoadWindow]) -> list[DeadExpert]:
    """Experts without a token over at least one whole window; windows that follow each other are one time of death."""
    found: list[DeadExpert] = []
    open_since: dict[tuple[int, int], tuple[int, int]] = {}  # (layer, expert): first and last step so far
    for window in windows:
        for layer, counts in enumerate(window.counts_LE):
            for expert, count in enumerate(counts):
                key = layer, expert
                if count == 0:
                    first, _ = open_since.get(key, (window.step - window.steps + 1, 0))
                    open_since[key] = first, window.step
                elif key in open_since:
                    found.append(DeadExpert(*key, *open_since.pop(key)))
    found += [DeadExpert(*key, *steps) for key, steps in open_since.items()]
    return sorted(found, key=lambda dead: (dead.layer, dead.expert, dead.first_step))


def read_baselines(corpus: Path) -> dict[str, dict[str, float]]:
    """Bits per byte of simple models on a corpus's held-out text, {source: {name: bits}}; empty without the file.

    Raises DataError when baselines.json is damaged.
    """
    found: dict[str, dict[str, float]] = {}
    for each in baselines.read_baselines(corpus):
        found.setdefault(each.source, {})[each.method] = each.bits_per_byte
    return found


def gaps(sources: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> list[Gap]:
    """The model's bits per byte of each source against every baseline of that source."""
    return [
        Gap(source, name, bits, sources[source])
        for source, named in baselines.items()
        if source in sources
        for name, bits in named.items()
    ]
