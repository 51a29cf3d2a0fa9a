"""Asking llama.cpp's and ik_llama.cpp's benchmarks, and reading what they print."""

import json
import stat
import sys
from pathlib import Path

import pytest

from make_random import write
from measure import BenchError
from peers import CppPeer, batched_speed, bench_speed
from random_model import SHAPE
from tapwater.config import replace_fields
from workloads import NotMeasuredError, Workload

PREFILL, STREAM, BATCH = Workload("prefill", 512), Workload("stream", 128, 64), Workload("batch", 128, 64, 8)
TEST = {"build_commit": "abc", "build_number": 7, "n_prompt": 512, "n_gen": 0, "samples_ts": [10.5, 12.25]}
IK_TABLE = """
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|   128 |     64 |    8 |   1536 |    0.236 |   542.67 |    0.173 |   185.50 |    0.408 |   391.79 |
llama_print_timings:        load time =    1171.88 ms
"""


def test_the_last_repetition_of_llama_bench_counts() -> None:
    assert bench_speed("loading\n" + json.dumps([TEST]), PREFILL) == (12.25, "abc (build 7)")


def test_depth_is_the_prompt_of_a_stream() -> None:
    llama_cpp = TEST | {"n_prompt": 0, "n_depth": 128, "n_gen": 64}
    ik = TEST | {"n_prompt": 128, "n_gen": 64}
    for test in (llama_cpp, ik):
        assert bench_speed(json.dumps([test]), STREAM)[0] == 12.25


@pytest.mark.parametrize(
    "output", ["", "[]", "[" + json.dumps(TEST) * 2, json.dumps([TEST, TEST]), json.dumps([{"n_prompt": 512}])]
)
def test_other_output_of_llama_bench_is_an_error(output: str) -> None:
    with pytest.raises(BenchError, match="one test in JSON"):
        bench_speed(output, PREFILL)


def test_another_test_than_the_one_asked_for_is_an_error() -> None:
    with pytest.raises(BenchError, match=r"\(512, 0\)"):
        bench_speed(json.dumps([TEST]), STREAM)


def test_both_kinds_of_batched_output() -> None:
    line = {"pp": 128, "tg": 64, "pl": 8, "speed_pp": 1.0, "speed_tg": 99.5}
    assert batched_speed("note\n" + json.dumps(line) + "\n", BATCH, "jsonl") == 99.5
    assert batched_speed(IK_TABLE, BATCH, "markdown") == 185.5


@pytest.mark.parametrize("table", ["jsonl", "markdown"])
def test_batched_output_without_the_asked_batch_is_an_error(table) -> None:
    with pytest.raises(BenchError, match="no line"):
        batched_speed(
            IK_TABLE + '{"pp": 128, "tg": 64, "pl": 8}'.replace("8}", "16}"), Workload("x16", 1, 64, 16), table
        )


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    for _ in write(path, SHAPE, "q4_0", seed=0):
        pass
    return path


def programs(directory: Path, script: str) -> Path:
    """Stand-ins for both programs: Python with `args` in place of a build."""
    directory.mkdir()
    for name in ("llama-bench", "llama-batched-bench"):
        path = directory / name
        path.write_text(f"#!{sys.executable}\nimport json, sys, time\nargs = sys.argv[1:]\n{script}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return directory


ECHO = """
value = lambda flag: int(args[args.index(flag) + 1]) if flag in args else 0
test = {"build_commit": "abc", "build_number": 7, "n_prompt": value("-p"), "n_gen": value("-n"), "samples_ts": [4, 5]}
if "-d" in args:
    test["n_depth"] = value("-d")
if "-gp" in args:
    test["n_prompt"], test["n_gen"] = map(int, args[args.index("-gp") + 1].split(","))
if "-npl" in args:
    numbers = [value(flag) for flag in ("-npp", "-ntg", "-npl")]
    if "--output-format" in args:
        print(json.dumps(dict(zip(("pp", "tg", "pl"), numbers), speed_tg=6.0)))
    else:
        print("|", " | ".join(map(str, [*numbers, 0, 0, 0, 0, 7.0])), "|", file=sys.stderr)
else:
    print(json.dumps([test]))
"""


@pytest.mark.parametrize(("kind", "batched"), [("llama.cpp", 6.0), ("ik_llama.cpp", 7.0)])
def test_every_workload_is_asked_for_and_read(tmp_path: Path, gguf: Path, kind: str, batched: float) -> None:
    peer = CppPeer(kind, programs(tmp_path / "bin", ECHO), gguf, SHAPE, threads=2, timeout_s=20)
    assert peer.build == "unknown"
    assert [peer.measure(workload) for workload in (PREFILL, STREAM, BATCH)] == [5, 5, batched]
    assert peer.build == "abc (build 7)"
    for workload in (PREFILL, STREAM, BATCH):
        command = peer.command(workload)
        assert command[command.index("-m") + 1] == str(gguf)
        assert command[command.index("-t") + 1] == "2"
        assert ("-mla" in command) == (kind == "ik_llama.cpp")


def test_a_program_that_fails_is_an_error_with_its_last_words(tmp_path: Path, gguf: Path) -> None:
    directory = programs(tmp_path / "bin", "sys.exit('no such flag')")
    peer = CppPeer("llama.cpp", directory, gguf, SHAPE, threads=1, timeout_s=20)
    with pytest.raises(BenchError, match=r"failed with 1: .*llama-bench(.|\n)*no such flag"):
        peer.measure(PREFILL)


def test_a_program_that_takes_too_long_gives_no_figure(tmp_path: Path, gguf: Path) -> None:
    directory = programs(tmp_path / "bin", "time.sleep(60)")
    peer = CppPeer("llama.cpp", directory, gguf, SHAPE, threads=1, timeout_s=0.2)
    with pytest.raises(NotMeasuredError, match="did not finish in 0"):
        peer.measure(PREFILL)


def test_missing_programs_and_other_models_are_refused(tmp_path: Path, gguf: Path) -> None:
    with pytest.raises(BenchError, match="holds no llama-bench"):
        CppPeer("llama.cpp", tmp_path, gguf, SHAPE, threads=1, timeout_s=1)
    other = replace_fields(SHAPE, {"num_hidden_layers": 4}, "other")
    with pytest.raises(BenchError, match="another model"):
        CppPeer("llama.cpp", programs(tmp_path / "bin", ECHO), gguf, other, threads=1, timeout_s=1)
