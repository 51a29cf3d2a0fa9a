"""The figures of a comparison, and how they are shown: medians, ranges, ratios, bandwidth, overhead, provenance."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from measure import Overhead
from report import provenance, save
from workloads import Engine, Workload

WIDTH = 140

Samples = dict[str, dict[str, list[float]]]  # by workload, by engine


@dataclass
class Comparison:
    """What was measured so far; `subject` is the engine the others are compared with."""

    subject: str
    speeds: Samples = field(default_factory=dict)  # tokens/s
    bandwidths: Samples = field(default_factory=dict)  # bytes/s, read just before a stream was measured
    overheads: dict[str, list[Overhead]] = field(default_factory=dict)  # of the subject, by workload
    not_measured: dict[str, set[str]] = field(default_factory=dict)  # workloads, by engine
    notes: list[str] = field(default_factory=list)

    def add(self, engine: str, workload: str, speed: float, bandwidth: float | None) -> None:
        self.speeds.setdefault(workload, {}).setdefault(engine, []).append(speed)
        if bandwidth is not None:
            self.bandwidths.setdefault(workload, {}).setdefault(engine, []).append(bandwidth)

    def drop(self, engine: str, workload: str, why: str) -> None:
        """Note that `engine` has no (further) figure for `workload`."""
        self.not_measured.setdefault(engine, set()).add(workload)
        self.notes.append(f"{workload}: {engine} {why}")

    def ratio(self, workload: str) -> float | None:
        """The subject's median over the best peer's; None unless both have figures."""
        speeds = self.speeds.get(workload, {})
        peers = [median(values) for engine, values in speeds.items() if engine != self.subject]
        return median(speeds[self.subject]) / max(peers) if peers and self.subject in speeds else None

    def publish(self, name: str, engines: Sequence[Engine], workloads: Sequence[Workload]) -> None:
        """Print everything and write it to bench/results/NAME.json."""
        measured = [workload for workload in workloads if workload.name in self.speeds]
        about = provenance()
        builds = {engine.name: engine.build for engine in engines}
        commands = {
            workload.name: {
                engine.name: shlex.join(engine.command(workload))
                for engine in engines
                if engine.name in self.speeds[workload.name]
            }
            for workload in measured
        }
        console = Console()
        if not console.is_terminal:  # a file or a pipe has no width to keep to
            console = Console(width=WIDTH)
        console.print(self._speed_table(name, engines, measured))
        streams = [workload for workload in measured if workload.name in self.bandwidths]
        if streams:
            console.print(self._bandwidth_table(engines, streams))
        for workload, overheads in self.overheads.items():
            console.print(_overhead_line(workload, overheads))
        lines = [f"{engine}: {build}" for engine, build in builds.items()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"{key}: {value}" for key, value in about.items()]
        for workload, by_engine in commands.items():
            lines += [f"{workload}: {command}" for command in by_engine.values()]
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        content = about | {"unit": "tokens/s", "speeds": self.speeds, "bandwidths": self.bandwidths}
        content |= {"ratios": {workload.name: self.ratio(workload.name) for workload in measured}}
        content |= {"read_bytes": {w.name: {e.name: e.read_bytes(w) for e in engines} for w in streams}}
        content |= {"overheads": {key: [asdict(each) for each in values] for key, values in self.overheads.items()}}
        save(name, content | {"builds": builds, "commands": commands, "notes": self.notes})

    def _speed_table(self, name: str, engines: Sequence[Engine], workloads: Sequence[Workload]) -> Table:
        table = Table(title=f"{name}: tokens/s, median (least - greatest)")
        table.add_column("")
        for engine in engines:
            table.add_column(_heading(engine), justify="right")
        table.add_column("ours / best peer", justify="right")
        for workload in workloads:
            speeds = self.speeds[workload.name]
            cells = [_spread(speeds[engine.name]) if engine.name in speeds else "-" for engine in engines]
            ratio = self.ratio(workload.name)
            table.add_row(workload.name, *cells, "-" if ratio is None else f"{ratio:.2f}")
        return table

    def _bandwidth_table(self, engines: Sequence[Engine], streams: Sequence[Workload]) -> Table:
        table = Table(title="bytes a step reads; per second, and as a share of the memory bandwidth read just before")
        table.add_column("")
        for engine in engines:
            table.add_column(_heading(engine), justify="right")
        for workload in streams:
            speeds, bandwidths = self.speeds[workload.name], self.bandwidths[workload.name]
            row = []
            for engine in engines:
                if engine.name not in speeds:
                    row.append("-")
                    continue
                step = engine.read_bytes(workload)
                pairs = list(zip(speeds[engine.name], bandwidths[engine.name], strict=True))
                rate = median(speed * step for speed, _ in pairs)
                share = median(speed * step / bandwidth for speed, bandwidth in pairs)
                row.append(f"{step / 1e6:.1f} MB\n{rate / 1e9:.1f} GB/s, {share:.0%}")
            table.add_row(workload.name, *row)
        return table


def _heading(engine: Engine) -> Text:
    """Its kind above its file or dtype."""
    return Text(engine.name.replace(" ", "\n", 1))


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f}\n({min(values):.1f} - {max(values):.1f})"


def _overhead_line(workload: str, overheads: Sequence[Overhead]) -> str:
    step, engine = (median(getattr(each, name) for each in overheads) for name in ("step_s", "engine_s"))
    share = median(each.share for each in overheads)
    return f"{workload}: a step takes {step * 1e3:.2f} ms, {engine * 1e3:.2f} ms of it ({share:.1%}) outside the model"
