"""The other engines: how llama.cpp's and ik_llama.cpp's own benchmarks are asked for a workload, and read.

Flags are the fastest known for each (flash attention; ik_llama.cpp: weights repacked at load, for latent attention its
third MLA mode and fused experts). Both feed random token ids and count exactly the tokens of the workload.
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from measure import BenchError, gguf_bytes
from tapwater.checkpoint import load_config
from tapwater.config import ModelConfig
from workloads import NotMeasuredError, Workload, cached_tokens

CACHE_BYTES = 2  # of a cached number: float16, their default


@dataclass(frozen=True)
class Dialect:
    """What the two families of command lines differ in."""

    bench: tuple[str, ...]
    bench_mla: tuple[str, ...]
    batched: tuple[str, ...]
    batched_mla: tuple[str, ...]
    after_prompt: Literal["-d", "-gp"]  # how llama-bench is asked to decode after a prompt
    table: Literal["jsonl", "markdown"]  # what llama-batched-bench prints


DIALECTS = {
    "llama.cpp": Dialect(("-fa", "1"), (), ("-fa", "on", "--output-format", "jsonl"), (), "-d", "jsonl"),
    "ik_llama.cpp": Dialect(
        ("-fa", "1", "-rtr", "1"), ("-mla", "3", "-fmoe", "1"), ("-fa", "on", "-rtr"), ("-mla", "3"), "-gp", "markdown"
    ),
}


class CppPeer:
    """llama.cpp or ik_llama.cpp: one process of its benchmark programs for each figure."""

    def __init__(
        self, kind: str, programs: Path, gguf: Path, config: ModelConfig, threads: int, timeout_s: float
    ) -> None:
        self.name = f"{kind} {gguf.stem}"
        self.gguf = gguf
        self.build = "unknown"  # until its llama-bench has said it
        self._dialect = DIALECTS[kind]
        self._programs = programs
        self._threads = str(threads)
        self._config = config
        self._timeout_s = timeout_s
        if load_config(gguf) != config:
            raise BenchError(f"{gguf}: is another model than the one compared")
        for program in ("llama-bench", "llama-batched-bench"):
            if not (programs / program).is_file():
                raise BenchError(f"{programs} holds no {program}: give the directory with {kind}'s built programs")

    def command(self, workload: Workload) -> list[str]:
        dialect = self._dialect
        if workload.batch > 1:
            room = max(8192, workload.batch * (workload.prompt + workload.new))
            sizes = (
                f"-c {room} -b 2048 -ub 512 -npp {workload.prompt} -ntg {workload.new} -npl {workload.batch}".split()
            )
            threads = ["-t", self._threads, "-tb", self._threads]
            flags = [*dialect.batched, *(dialect.batched_mla if self._config.is_mla else ())]
            return [self._program("llama-batched-bench"), "-m", str(self.gguf), *threads, *sizes, *flags]
        flags = ["-t", self._threads, *dialect.bench, *(dialect.bench_mla if self._config.is_mla else ()), "-o", "json"]
        if workload.new == 0:
            # the first repetition touches all weights, the last one counts
            sizes = f"-p {workload.prompt} -n 0 -r 2".split()
        elif dialect.after_prompt == "-d":
            sizes = f"-p 0 -n {workload.new} -d {workload.prompt} -r 1".split()
        else:
            sizes = f"-p 0 -n 0 -gp {workload.prompt},{workload.new} -r 1".split()
        return [self._program("llama-bench"), "-m", str(self.gguf), *sizes, *flags]

    def measure(self, workload: Workload) -> float:
        """NotMeasuredError when the time is up, BenchError when the program fails."""
        done = self._run(self.command(workload))
        if workload.batch > 1:
            return batched_speed(done.stdout + done.stderr, workload, self._dialect.table)  # where depends on the build
        speed, self.build = bench_speed(done.stdout, workload)
        return speed

    def read_bytes(self, workload: Workload) -> int:
        cache = CACHE_BYTES * self._config.kv_elements_per_token * cached_tokens(workload)
        return gguf_bytes(self.gguf, self._config) + cache

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        shown = " ".join(command)
        # Elsewhere than here: some builds leave a log file where they are started.
        with tempfile.TemporaryDirectory() as directory:
            absolute = [str(Path(command[0]).resolve()), "-m", str(self.gguf.resolve()), *command[3:]]
            try:
                done = subprocess.run(absolute, cwd=directory, capture_output=True, text=True, timeout=self._timeout_s)
            except subprocess.TimeoutExpired:
                raise NotMeasuredError(f"did not finish in {self._timeout_s:.0f} s: {shown}") from None
        if done.returncode:
            raise BenchError(f"failed with {done.returncode}: {shown}\n{done.stderr[-2000:]}")
        return done


def bench_speed(output: str, workload: Workload) -> tuple[float, str]:
    """Tokens per second of the last repetition in llama-bench's JSON, and which build it was."""
    try:
        (test,) = json.loads(output[output.index("[") :])
        asked = (test["n_prompt"] + test.get("n_depth", 0), test["n_gen"])
        speed, build = test["samples_ts"][-1], f"{test['build_commit']} (build {test['build_number']})"
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BenchError(f"llama-bench printed something else than one test in JSON ({error!r}): {output}") from None
    if asked != (workload.prompt, workload.new):
        raise BenchError(f"llama-bench measured {asked} tokens of prompt and answer, not {workload}")
    return speed, build


def batched_speed(output: str, workload: Workload, table: Literal["jsonl", "markdown"]) -> float:
    """Decoded tokens per second of all streams in the one line llama-batched-bench prints."""
    wanted = (workload.prompt, workload.new, workload.batch)
    for line in output.splitlines():
        line = line.strip()
        if table == "jsonl" and line.startswith("{"):
            row = json.loads(line)
            if (row["pp"], row["tg"], row["pl"]) == wanted:
                return row["speed_tg"]
        if table == "markdown" and line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0].isdigit() and tuple(map(int, cells[:3])) == wanted:
                return float(cells[7])
    raise BenchError(f"llama-batched-bench printed no line for {workload}: {output}")
