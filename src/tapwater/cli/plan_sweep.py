"""Points of `tapwater plan sweep` as they come: kept when somebody stops them."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tapwater.cli.plan_tables import money
from tapwater.config import ModelConfig
from tapwater.cost.sweep import SweepPoint
from tapwater.errors import ConfigError

EVERY = 100  # points between two reports of progress

Progress = Callable[[int, int], None]


def usual_contexts(config: ModelConfig) -> list[int]:
    """1,024 tokens and its doublings up to 131,072, as far as the model goes: those it has when nobody says which."""
    longest = config.max_position_embeddings
    return [each for each in (2**power for power in range(10, 18)) if each <= longest] or [longest]


def collect(points: Iterator[SweepPoint], total: int, progress: Progress) -> list[SweepPoint]:
    """All points, or those there were at Ctrl-C."""
    found: list[SweepPoint] = []
    try:
        for point in points:
            found.append(point)
            if len(found) % EVERY == 0:
                progress(len(found), total)
    except KeyboardInterrupt:
        pass
    return found


def write_csv(points: Iterator[SweepPoint], total: int, path: Path, progress: Progress) -> int:
    """How many points were written to the new file: all, or those there were at Ctrl-C; ConfigError if it exists."""
    done = 0
    try:
        with path.open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            try:
                for point in points:
                    facts = point_facts(point)
                    if not done:
                        writer.writerow(facts)
                    writer.writerow("" if value is None else value for value in facts.values())
                    done += 1
                    if done % EVERY == 0:
                        progress(done, total)
            except KeyboardInterrupt:
                pass
    except FileExistsError:
        raise ConfigError(f"{path} is there already; choose another name") from None
    return done


def point_facts(point: SweepPoint) -> dict[str, Any]:
    """A point as plain values; money is text."""
    usd = None if point.usd_per_million is None else money(point.usd_per_million)
    return {**vars(point), "layout": str(point.layout), "usd_per_million": usd}
