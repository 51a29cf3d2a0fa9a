"""What one sees of a run while it goes on: a live panel on a terminal, a line now and then elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import inf, isfinite
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tapwater.train.metrics import summarise

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 48
STRIP_WIDTH = 32  # more experts than this share cells
LAYERS_SHOWN = 8
DRAW_EVERY_S = 0.25  # steps of a small model are faster than eyes, and the curve is drawn from all losses


@dataclass(frozen=True)
class Progress:
    """A run after `step` of `total_steps` steps; `load_LE` as in StepMetrics, None for what is not known (yet)."""

    step: int
    total_steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    elapsed_s: float  # of the run, over all interruptions
    left_s: float | None = None
    mfu: float | None = None
    bits_per_byte: float | None = None  # of the last evaluation
    fim_exact: float | None = None
    fim_exact_spm: float | None = None
    cost_usd: Decimal | None = None
    total_usd: Decimal | None = None  # expected at the end
    load_LE: Sequence[Sequence[int]] = ()


class View:
    """Shows Progress on `console` as long as it is entered: live on a terminal, else a line every `every` steps.

    The first and the last step have a line whatever `every` is. `note` prints a sentence that stays, such as where a
    checkpoint went; on a terminal it scrolls above the panel.
    """

    def __init__(self, console: Console, title: str, every: int) -> None:
        self._console = console
        self._title = title
        self._every = every
        self._losses: list[float] = []
        self._drawn_s = -inf
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "View":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Take in the newest step."""
        self._losses.append(progress.loss)
        if self._live is not None:
            if monotonic() - self._drawn_s >= DRAW_EVERY_S or progress.step == progress.total_steps:
                self._live.update(panel(self._title, progress, self._losses))
                self._drawn_s = monotonic()
        elif progress.step % self._every == 0 or progress.step in (1, progress.total_steps):
            self._console.print(line(progress), highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a sentence that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def line(progress: Progress) -> str:
    """A step in one line of plain text."""
    parts = [f"step {progress.step}/{progress.total_steps}", *(f"{name} {value}" for name, value in _facts(progress))]
    worst = max((summarise(load_E).max_over_mean for load_E in progress.load_LE), default=None)
    if worst is not None:
        parts.append(f"busiest expert {worst:.2f}x the mean")
    return "  ".join(parts)


def panel(title: str, progress: Progress, losses: Sequence[float]) -> Panel:
    """The live panel: facts, the curve of the loss, how even the experts' load is."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(progress):
        facts.add_row(Text(name, style="dim"), value)
    facts.add_row(Text("loss so far", style="dim"), sparkline(losses, CURVE_WIDTH))
    bar = Table.grid(padding=(0, 2))
    steps = f"step {progress.step:,} of {progress.total_steps:,}"
    bar.add_row(steps, ProgressBar(total=progress.total_steps, completed=progress.step, width=40))
    parts = [bar, facts]
    if progress.load_LE:
        parts.append(_load(progress.load_LE))
    return Panel(Group(*parts), title=Text(title), title_align="left", width=80)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as bars between their least and greatest, averaged where there are more than `width` of them.

    A cell without a finite value is "!".
    """
    width = min(width, len(values))
    cells = [values[index * len(values) // width : (index + 1) * len(values) // width] for index in range(width)]
    finite = [[value for value in cell if isfinite(value)] for cell in cells]
    means = [sum(cell) / len(cell) if cell else None for cell in finite]
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return "".join("!" if mean is None else _bar(mean - low, high - low) for mean in means)


def strip(load_E: Sequence[int], width: int) -> Text:
    """One layer's experts as bars, full at twice the mean: red far above it, yellow above, blue far below.

    An expert without a token is "·". Of more than `width` experts neighbours share a cell, which shows their busiest.
    """
    width = min(width, len(load_E))
    mean = sum(load_E) / len(load_E)
    text = Text()
    for index in range(width):
        count = max(load_E[index * len(load_E) // width : (index + 1) * len(load_E) // width])
        if count == 0:
            text.append("·", style="bold red")
            continue
        style = "red" if count > 2 * mean else "yellow" if count > 1.5 * mean else "blue" if count < mean / 2 else ""
        text.append(_bar(count, 2 * mean), style=style or "green")
    return text


def _load(load_LE: Sequence[Sequence[int]]) -> Table:
    shown = sorted(range(len(load_LE)), key=lambda layer: -summarise(load_LE[layer]).max_over_mean)[:LAYERS_SHOWN]
    named = "experts' load" if len(shown) == len(load_LE) else f"the {len(shown)} most uneven of {len(load_LE)} layers"
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("layer", style="dim"), Text(named, style="dim"), Text("max/mean", style="dim"),
                  Text("unused", style="dim"))  # fmt: skip
    for layer in sorted(shown):
        load = summarise(load_LE[layer])
        table.add_row(str(layer), strip(load_LE[layer], STRIP_WIDTH), f"{load.max_over_mean:.2f}", str(load.unused))
    return table


def _facts(progress: Progress) -> list[tuple[str, str]]:
    facts = [("loss", f"{progress.loss:.4f}")]
    if progress.bits_per_byte is not None:
        facts.append(("held-out bits per byte", f"{progress.bits_per_byte:.4f}"))
    if progress.fim_exact is not None:
        facts.append(("infills exact", f"{progress.fim_exact:.1%}"))
    if progress.fim_exact_spm is not None:
        facts.append(("infills exact, suffix first", f"{progress.fim_exact_spm:.1%}"))
    facts += [("lr", f"{progress.lr:.3g}"), ("grad norm", f"{progress.grad_norm:.3g}")]
    speed = f"{progress.tokens_per_s:,.0f}"
    facts += [("tokens", f"{progress.tokens:,}"), ("tokens/s", speed)]
    if progress.mfu is not None:
        facts.append(("MFU", f"{progress.mfu:.1%}"))
    if progress.cost_usd is not None:
        ahead = "" if progress.total_usd is None else f" of about ${progress.total_usd:.4f}"
        facts.append(("cost", f"${progress.cost_usd:.4f}{ahead}"))
    facts.append(("time", duration(progress.elapsed_s)))
    if progress.left_s is not None:
        facts.append(("left", duration(progress.left_s)))
    return facts


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(value: float, full: float) -> str:
    share = value / full if full > 0 else 0.0
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]
