"""Plots of a training run, beside those of report_plots.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from tapwater.cli.report_plots import Draw

EVEN = 2.0  # the heat map's colours end at twice an even load


def curves(series: Mapping[str, Sequence[tuple[float, float]]], y: str, level: float | None = None) -> Draw:
    """Lines over steps, both axes linear; `level` draws a line to hold them against."""

    def draw(axes: Any) -> None:
        for label, points in series.items():
            marker = "o" if len(points) < 12 else None
            axes.plot(*zip(*points, strict=True), linewidth=1.2, marker=marker, markersize=4, label=label)
        if level is not None:
            axes.axhline(level, linewidth=0.8, linestyle="--", color="#888888")
        axes.set_xlabel("step")
        axes.set_ylabel(y)
        axes.grid(True)
        if len(series) > 1:
            axes.legend(ncols=1 + len(series) // 10)

    return draw


def heat(rows: Sequence[Sequence[float]], first_step: int, last_step: int) -> Draw:
    """Experts from top to bottom, time from left to right, colour the load over the mean: blue below 1, red above."""

    def draw(axes: Any) -> None:
        image = axes.imshow(
            rows, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=0.0, vmax=EVEN,
            extent=(first_step - 0.5, last_step + 0.5, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("expert")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.figure.colorbar(image, ax=axes, label="load / mean", extend="max")

    return draw
