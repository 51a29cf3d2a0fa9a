"""Plots of an ablation, beside those of report_plots.py."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tapwater.cli.report_plots import COLOURS, Draw

STYLES = ("-", "--", ":", "-.")  # with the colours, for more variants than there are colours


def losses(series: Mapping[str, Sequence[tuple[float, float]]], x: str) -> Draw:
    """Curves of which the second half is seen, since the first is a fall that all share."""

    def draw(axes: Any) -> None:
        ends = [points[-1][0] for points in series.values()]
        left = min(0.9 * min(ends), 0.5 * max(ends))
        seen: list[float] = []
        for index, (label, points) in enumerate(series.items()):
            style = STYLES[index // len(COLOURS) % len(STYLES)]
            marker = "o" if len(points) < 12 else None
            axes.plot(*zip(*points, strict=True), linewidth=1.2, linestyle=style, marker=marker, markersize=4,
                      label=label)  # fmt: skip
            seen += [value for across, value in points if across >= left]
        low, high = min(seen), max(seen)
        margin = 0.05 * (high - low) or 0.1
        axes.set_xlim(left, 1.01 * max(ends))
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel(x)
        axes.set_ylabel("nats per token")
        axes.grid(True)
        if len(series) > 1:
            axes.legend(ncols=1 + len(series) // 7)

    return draw


def strips(groups: Mapping[str, Sequence[float]], x: str) -> Draw:
    """A row a label: its values as dots, their mean as a line."""

    def draw(axes: Any) -> None:
        for row, values in enumerate(groups.values()):
            axes.plot(values, [row] * len(values), linestyle="", marker="o", markersize=5, color=COLOURS[0], alpha=0.7)
            axes.plot([fmean(values)] * 2, [row - 0.3, row + 0.3], linewidth=1.6, color=COLOURS[1])
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.margins(y=0.1)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(x)
        axes.grid(True, axis="x")

    return draw
