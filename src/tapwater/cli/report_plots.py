"""Plots as inline SVG: text in the page's own colour, so that they read on light and dark alike."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tapwater.errors import ConfigError

try:
    import matplotlib
except ImportError:
    raise ConfigError("a report needs matplotlib: pip install 'tapwater[report]'") from None

matplotlib.use("svg")
import matplotlib.pyplot as plt
from cycler import cycler

INK = "#0a0b0c"  # stands for the page's colour of text
# Okabe and Ito's, without black and yellow: told apart by the colour-blind, and visible on light and dark
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
MARKERS = "osD^vP"
SIZE = (5.2, 3.5)  # inches; a phone shows them nearly at full size

Draw = Callable[[Any], None]


def svg(name: str, title: str, draw: Draw, height: float = SIZE[1]) -> str:
    """An `<svg>` element that `draw` filled; `title` is what a screen reader says."""
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # ids of two plots in one page must differ
        "font.size": 9.5,
        "font.family": "sans-serif",
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLOURS),
        "legend.frameon": False,
        "grid.color": "#888888",
        "grid.alpha": 0.3,
        "grid.linewidth": 0.6,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(SIZE[0], height), layout="constrained")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'id="(?!m[0-9a-f]{6,}|p[0-9a-f]{6,})[^"]*"', "", text)  # matplotlib's group names repeat
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )
    return text.replace(INK, "currentColor")


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> Draw:
    """Curves over doublings, both axes logarithmic."""

    def draw(axes: Any) -> None:
        for index, (label, points) in enumerate(curves.items()):
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, linewidth=1.6, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({point[0] for points in curves.values() for point in points})
        axes.set_xticks(ticks[:: max(1, -(-len(ticks) // 7))])
        axes.xaxis.set_major_formatter(_binary)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(_plain)
        low, high = (bound(value for points in curves.values() for _, value in points) for bound in (min, max))
        axes.set_yticks(_nice(low, high))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True)
        if len(curves) > 1:
            axes.legend()

    return draw


def bars(groups: Mapping[str, Mapping[str, float]], x: str, logarithmic: bool = False) -> Draw:
    """Horizontal bars: a group a label, a bar of each group a series."""

    def draw(axes: Any) -> None:
        series = list(dict.fromkeys(name for values in groups.values() for name in values))
        width = 0.8 / len(series)
        for index, name in enumerate(series):
            places = [row + (index - (len(series) - 1) / 2) * width for row in range(len(groups))]
            axes.barh(places, [values.get(name, 0.0) for values in groups.values()], width * 0.92, label=name)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(_plain)
        axes.set_xlabel(x)
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        if len(series) > 1:
            axes.legend(loc="lower right")

    return draw


def dots(points: Sequence[tuple[str, float, float]], x: str, y: str) -> Draw:
    """Named points, both axes logarithmic."""

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.18)
        for index, (label, across, up) in enumerate(points):
            look = {"marker": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)]}
            fill = "none" if index >= len(COLOURS) else look["color"]
            axes.plot(across, up, linestyle="", markersize=8, markerfacecolor=fill, label=label, **look)
        axes.legend(loc="upper left", handletextpad=0.2)
        axes.minorticks_off()
        for axis, values in ((axes.xaxis, [p[1] for p in points]), (axes.yaxis, [p[2] for p in points])):
            axis.set_ticks(_nice(min(values), max(values)))
            axis.set_major_formatter(_plain)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True)

    return draw


def _nice(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around an interval."""
    powers = range(-9, 13)
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max((index for index, tick in enumerate(every) if tick <= low), default=0)
    last = min((index for index, tick in enumerate(every) if tick >= high), default=len(every) - 1)
    ticks = every[first : last + 1]
    return ticks if len(ticks) <= 8 else [tick for tick in ticks if f"{tick:e}".startswith("1")]


def _binary(value: float, position: int | None = None) -> str:
    return f"{value / 1024:g}K" if value >= 1024 and value % 1024 == 0 else f"{value:g}"


def _plain(value: float, position: int | None = None) -> str:
    return f"{value:,g}"
