"""Decoding over batch and context: a point for each pair."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tapwater.config import ModelConfig
from tapwater.cost.candidates import chunk_tokens, layouts
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout
from tapwater.cost.memory import largest_batch, serving_memory
from tapwater.cost.plan import MILLION, SECONDS_PER_HOUR, decimal, node_share, rent_of
from tapwater.cost.throughput import Estimate, Serving, decode
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class SweepPoint:
    """`batch` requests generate on one unit, each with `context` cached tokens; rates are None where they do not fit.

    `device_bytes` is what the fullest device holds, `usd_per_million` what output costs while nothing idles.
    """

    batch: int
    context: int
    layout: Layout
    fits: bool
    device_bytes: float
    tokens_per_s: float | None = None
    low: float | None = None
    high: float | None = None
    step_s: float | None = None
    usd_per_million: Decimal | None = None


def sweep(
    config: ModelConfig,
    machine: Machine,
    formats: Formats,
    batches: Sequence[int],
    contexts: Sequence[int],
    layout: Layout | None = None,
) -> Iterator[SweepPoint]:
    """Points, context by context; without a layout the fastest of a whole node that holds the batch.

    ConfigError, before the first point, for a batch, context or layout that cannot be.
    """
    for batch in batches:
        if not 1 <= batch <= 10**7:
            raise ConfigError(f"batch must be from 1 to 10,000,000, got {batch}")
    for context in contexts:
        if not 1 <= context <= config.max_position_embeddings:
            raise ConfigError(
                f"context must be between 1 and the model's {config.max_position_embeddings}, got {context}"
            )
    chosen = [layout] if layout is not None else _whole_node(config, machine)
    servings = [Serving(config, machine, formats, each, chunk_tokens(machine)) for each in chosen]
    if layout is not None or machine.kernels is not None:
        decode(servings[0], 1, 1)  # a link the machine lacks, or a format, is an error of the user's
    else:
        servings = [serving for serving in servings if _works(serving)]
    if not servings:
        raise ConfigError(f"{machine.name}: no layout of a whole node works for weights in {formats.weights}")
    return _points(servings, batches, contexts)


def _points(servings: list[Serving], batches: Sequence[int], contexts: Sequence[int]) -> Iterator[SweepPoint]:
    config, machine, formats = servings[0].config, servings[0].machine, servings[0].formats
    for context in contexts:
        rooms = [
            largest_batch(config, machine, serving.layout, context=context, formats=formats) for serving in servings
        ]
        roomiest = servings[rooms.index(max(rooms))]
        for batch in batches:
            best: tuple[Estimate, Serving] | None = None
            for serving, room in zip(servings, rooms, strict=True):
                if batch <= room:
                    found = decode(serving, batch, context)
                    if best is None or found.tokens_per_s > best[0].tokens_per_s:
                        best = found, serving
            layout = (best[1] if best is not None else roomiest).layout
            memory = serving_memory(config, machine, layout, requests=batch, context=context, formats=formats)
            if best is None:
                yield SweepPoint(batch, context, layout, False, memory.total_bytes)
                continue
            found, usd = best[0], None
            if machine.usd_per_hour is not None:
                second = rent_of(machine.usd_per_hour, node_share(layout, machine)) / SECONDS_PER_HOUR
                usd = second * MILLION / decimal(found.tokens_per_s)
            rates = found.tokens_per_s, found.low, found.high, found.step_s
            yield SweepPoint(batch, context, layout, True, memory.total_bytes, *rates, usd)


def _whole_node(config: ModelConfig, machine: Machine) -> list[Layout]:
    return [layout for layout in layouts(config, machine, 1) if layout.devices == machine.devices]


def _works(serving: Serving) -> bool:
    try:
        decode(serving, 1, 1)
    except ConfigError:  # of a candidate only: the machine has no link for it
        return False
    return True
