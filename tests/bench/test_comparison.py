"""Turns, ratios, and the report of a comparison."""

import json
from pathlib import Path

import pytest

import report
from comparison import Comparison
from measure import Overhead
from tapwater.config import preset
from tapwater.errors import ConfigError
from versus import choose, turns
from workloads import Workload, offered

PREFILL, STREAM = Workload("prefill 512", 512), Workload("decode x1", 128, 64)


class Fake:
    def __init__(self, name: str) -> None:
        self.name = name
        self.build = f"{name}-1"

    def command(self, workload: Workload) -> list[str]:
        return [self.name, "[bold]", workload.name]

    def measure(self, workload: Workload) -> float:
        return 1.0

    def read_bytes(self, workload: Workload) -> int:
        return 2_000_000


def test_workloads_end_where_the_context_does() -> None:
    names = [workload.name for workload in offered(preset("smollm2-135m"))]
    assert names[:4] == ["prefill 512", "decode x1", "decode x8", "decode x32"]
    assert names[4:] == ["decode x1 at 4096", "decode x1 at 8128"]
    deepest = offered(preset("deepseek-v2-lite"))[-1]
    assert (deepest.name, deepest.prompt, deepest.is_stream) == ("decode x1 at 16384", 16384, True)
    assert [workload.prompt for workload in offered(preset("tiny"))[4:]] == [2048 - 64]


def test_every_engine_measures_every_workload_in_every_round_and_each_begins_in_turn() -> None:
    engines = [Fake("a"), Fake("b"), Fake("c")]
    order = [(round, workload.name, engine.name) for round, workload, engine in turns(engines, [PREFILL, STREAM], 3)]
    assert len(set(order)) == len(order) == 18
    first = {(round, workload): engine for round, workload, engine in reversed(order)}
    assert [first[round, "prefill 512"] for round in range(3)] == ["a", "b", "c"]
    assert [first[round, "decode x1"] for round in range(3)] == ["b", "c", "a"]


def test_a_workload_that_is_not_offered_is_refused() -> None:
    assert choose([PREFILL, STREAM], ["decode x1"]) == [STREAM]
    assert choose([PREFILL, STREAM], []) == [PREFILL, STREAM]
    with pytest.raises(ConfigError, match=r"'decode x2'.*'prefill 512'"):
        choose([PREFILL, STREAM], ["decode x2"])


@pytest.fixture
def comparison() -> Comparison:
    found = Comparison(subject="ours")
    for speed in (30.0, 10.0, 20.0):
        found.add("ours", "decode x1", speed, 100e6)
    found.add("slow", "decode x1", 5.0, 100e6)
    found.add("fast", "decode x1", 8.0, 100e6)
    return found


def test_the_ratio_is_to_the_best_peer(comparison: Comparison) -> None:
    assert comparison.ratio("decode x1") == 20 / 8
    comparison.add("ours", "prefill 512", 1.0, None)
    assert comparison.ratio("prefill 512") is None
    assert comparison.ratio("decode x8") is None


def test_the_report_shows_and_keeps_everything(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    comparison.drop("slow", "prefill 512", "did not finish in 9 s")
    comparison.add("ours", "prefill 512", 7.0, None)
    comparison.overheads["decode x1"] = [Overhead(step_s=0.050, engine_s=0.002)]
    comparison.publish("test", [Fake("ours"), Fake("slow"), Fake("fast")], [PREFILL, STREAM])
    shown = capsys.readouterr().out
    for wanted in ("(10.0 - 30.0)", "2.50", "2.0 MB", "40%", "50.00 ms, 2.00 ms", "(4.0%)", "did not finish", "[bold]"):
        assert wanted in shown
    kept = json.loads((tmp_path / "test.json").read_text())
    assert kept["speeds"]["decode x1"]["ours"] == [30.0, 10.0, 20.0]
    assert kept["ratios"] == {"prefill 512": None, "decode x1": 2.5}
    assert kept["builds"]["fast"] == "fast-1"
    assert kept["commands"]["decode x1"]["slow"] == "slow '[bold]' 'decode x1'"
    assert list(kept["commands"]["prefill 512"]) == ["ours"]
    assert kept["overheads"]["decode x1"] == [{"step_s": 0.050, "engine_s": 0.002}]
    assert kept["commit"] and kept["machine"]
