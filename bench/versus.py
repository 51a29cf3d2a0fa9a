"""tapwater and its peers side by side: same weights, threads, prompts and batch, in turn, several rounds.

    python bench/versus.py MODEL.gguf [section.key=value ...] [--llama-cpp DIR] [--ik DIR] [--transformers DTYPE]

In a round every workload is measured on one engine after another, and the order moves on with every workload and round,
so that the machine's drift hits all of them. Peers that are not given are left out. docs/guides/benchmarks.md tells how
they are built.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from comparison import Comparison
from measure import memory_bandwidth
from peers import CppPeer
from subject import Tapwater
from tapwater.checkpoint import load_config
from tapwater.cli.common import load, locate
from tapwater.config import ModelConfig, load_run
from tapwater.cost.counts import parameters
from tapwater.errors import ConfigError, TapwaterError
from workloads import Engine, NotMeasuredError, Workload, offered

OVERHEAD = ("decode x1",)  # workloads whose steps are told apart into model and engine

app = cyclopts.App(help=__doc__)


@Parameter(name="*", negative=())
@dataclass(frozen=True)
class Peers:
    """Which engines are compared with."""

    llama_cpp: Annotated[Path | None, Parameter(help="Directory with llama.cpp's built programs.")] = None
    llama_cpp_gguf: Annotated[
        tuple[Path, ...], Parameter(help="A file it runs instead of MODEL, a column each: its best format may differ.")
    ] = ()
    ik: Annotated[Path | None, Parameter(help="Directory with ik_llama.cpp's built programs.")] = None
    ik_gguf: Annotated[tuple[Path, ...], Parameter(help="A file it runs instead of MODEL, a column each.")] = ()
    transformers: Annotated[
        Literal["float32", "bfloat16"] | None, Parameter(help="Measure transformers too, on prompts up to 512 tokens.")
    ] = None
    timeout_s: Annotated[
        float, Parameter(help="Seconds for one figure of a C++ peer; one that takes longer is noted as not finished.")
    ] = 1800

    def engines(self, gguf: Path, config: ModelConfig, threads: int) -> list[Engine]:
        """The peers, ready to measure; ConfigError or BenchError for one that cannot be."""
        found: list[Engine] = []
        for kind, programs, files in self._cpp():
            if programs is not None:
                each = files or (gguf,)
                found += [CppPeer(kind, programs, file, config, threads, self.timeout_s) for file in each]
            elif files:
                raise ConfigError(f"files are given for {kind}, but not the directory with its programs")
        if self.transformers is not None:
            from transformers_peer import TransformersPeer  # takes seconds

            found.append(TransformersPeer(gguf, config, self.transformers, threads))
        for name, count in Counter(engine.name for engine in found).items():
            if count > 1:
                raise ConfigError(f"two files of one peer have the same name: {name}")
        return found

    def left_out(self) -> list[str]:
        missing = [kind for kind, programs, _ in self._cpp() if programs is None]
        return missing + ["transformers"] * (self.transformers is None)

    def _cpp(self) -> tuple[tuple[str, Path | None, tuple[Path, ...]], ...]:
        return ("llama.cpp", self.llama_cpp, self.llama_cpp_gguf), ("ik_llama.cpp", self.ik, self.ik_gguf)


@app.default
def main(
    model: str,
    *overrides: str,
    ours: str | None = None,
    threads: int = 2,
    rounds: int = 3,
    only: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    name: str = "versus",
    peers: Peers | None = None,
) -> None:
    """Measure MODEL, a GGUF file or a packaged name, on tapwater and the peers given.

    Parameters
    ----------
    overrides
        Settings of tapwater as section.key=value.
    ours
        What tapwater loads instead of MODEL: the same model in its own format.
    threads
        Of every engine.
    rounds
        How often everything is measured.
    only
        A workload to measure, e.g. "decode x8"; all if none is given.
    name
        Of the results: bench/results/NAME.json.
    """
    if any(override.startswith("engine.threads=") for override in overrides):
        raise ConfigError("engine.threads: say --threads, which all engines get")
    if rounds < 1 or threads < 1:
        raise ConfigError(f"rounds and threads must be at least 1, got {rounds} and {threads}")
    gguf = locate(model)
    if gguf.suffix != ".gguf":
        raise ConfigError(f"{gguf}: peers read GGUF files; say what tapwater reads with --ours")
    config = load_config(gguf)
    chosen = choose(offered(config), only)
    peers = peers or Peers()
    others = peers.engines(gguf, config, threads)
    run = load_run(None, [f"engine.threads={threads}", *overrides])
    llm = load(ours or model, run)
    try:
        tapwater = Tapwater(llm, run.engine, [ours or model, f"engine.threads={threads}", *overrides])
        if parameters(llm.config) != parameters(config):
            raise ConfigError(f"--ours {ours} is another model than {model}")
        for workload in chosen:
            tapwater.check(workload)
        comparison = Comparison(subject=tapwater.name)
        comparison.notes += [f"{missing} was not given" for missing in peers.left_out()]
        try:
            _measure(tapwater, others, chosen, rounds, threads, comparison)
        finally:  # what an interrupted comparison has measured is shown too
            comparison.notes += tapwater.notes()
            comparison.publish(name, [tapwater, *others], chosen)
    finally:
        llm.close()


def choose(workloads: Sequence[Workload], only: Sequence[str]) -> list[Workload]:
    """The workloads named, in their own order; all if none is named."""
    names = [workload.name for workload in workloads]
    for wanted in only:
        if wanted not in names:
            raise ConfigError(f"--only {wanted!r} is no workload; there are {', '.join(map(repr, names))}")
    return [workload for workload in workloads if not only or workload.name in only]


def turns(
    engines: Sequence[Engine], workloads: Sequence[Workload], rounds: int
) -> Iterator[tuple[int, Workload, Engine]]:
    """Round, workload and engine, one engine after another; who begins moves on each time."""
    for round in range(rounds):
        for index, workload in enumerate(workloads):
            first = (round + index) % len(engines)
            for engine in (*engines[first:], *engines[:first]):
                yield round, workload, engine


def _measure(
    tapwater: Tapwater,
    peers: Sequence[Engine],
    workloads: Sequence[Workload],
    rounds: int,
    threads: int,
    comparison: Comparison,
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("Warming up", total=rounds * len(workloads) * (1 + len(peers)))
        tapwater.warm_up()
        for round, workload, engine in turns([tapwater, *peers], workloads, rounds):
            progress.update(task, description=f"Round {round + 1} of {rounds}: {workload.name}, {engine.name}")
            _measure_one(engine, workload, threads, comparison)
            if engine is tapwater and tapwater.is_native and workload.name in OVERHEAD:
                comparison.overheads.setdefault(workload.name, []).append(tapwater.overhead(workload))
            progress.advance(task)


def _measure_one(engine: Engine, workload: Workload, threads: int, comparison: Comparison) -> None:
    """One figure, and the memory bandwidth beside it; an engine that cannot give it is not asked again."""
    if workload.name in comparison.not_measured.get(engine.name, ()):
        return
    bandwidth = memory_bandwidth(threads) if workload.is_stream else None
    try:
        speed = engine.measure(workload)
    except NotMeasuredError as error:
        comparison.drop(engine.name, workload.name, str(error))
        return
    comparison.add(engine.name, workload.name, speed, bandwidth)


if __name__ == "__main__":
    try:
        app()
    except TapwaterError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
