"""What is read out of a run's metrics."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tapwater.data.baselines import Baseline
from tapwater.errors import DataError
from tapwater.train.health import (
    DeadExpert,
    Gap,
    LoadWindow,
    curve,
    dead_experts,
    gaps,
    imbalance,
    load_windows,
    read_baselines,
    relative_load,
    thinned,
)


def test_a_curve_leaves_out_what_is_not_known() -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3}, {"step": 4, "loss": "1.5"}]
    assert curve(lines, "loss") == [(1.0, 2.0), (4.0, 1.5)]


def test_thinning_averages_all_points_and_keeps_the_end() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    found = thinned(points, 100)
    assert len(found) == 100 and found[-1][0] == 1000.0
    assert all(value == 0.5 for _, value in found)
    assert thinned(points[:7], 100) == points[:7]


def test_loads_by_layer_and_expert() -> None:
    lines = [
        {"step": 1, "load": [{"max_over_mean": 2.0}, {"max_over_mean": 1.0}]},
        {"step": 2, "load": [{"max_over_mean": 1.5}, {"max_over_mean": 3.0}],
         "loads": {"steps": 2, "counts": [[6, 2], [4, 4]]}},
    ]  # fmt: skip
    assert imbalance(lines) == {0: [(1.0, 2.0), (2.0, 1.5)], 1: [(1.0, 1.0), (2.0, 3.0)]}
    windows = load_windows(lines)
    assert windows == [LoadWindow(2, 2, [[6, 2], [4, 4]])]
    assert relative_load(windows, 0) == [[1.5], [0.5]]


def test_dead_experts_are_dead_for_whole_windows() -> None:
    windows = [
        LoadWindow(20, 20, [[0, 5, 5], [1, 1, 1]]),
        LoadWindow(40, 20, [[0, 5, 5], [0, 1, 1]]),
        LoadWindow(60, 20, [[1, 5, 5], [1, 1, 1]]),
        LoadWindow(70, 10, [[0, 5, 5], [1, 1, 1]]),
    ]
    assert dead_experts(windows) == [DeadExpert(0, 0, 1, 40), DeadExpert(0, 0, 61, 70), DeadExpert(1, 0, 21, 40)]


def test_gaps_to_baselines_of_the_same_source(tmp_path: Path) -> None:
    assert read_baselines(tmp_path) == {}
    path = tmp_path / "baselines.json"
    lines = [("web", "n-gram", 4.5), ("web", "zstd", 2.5), ("other", "zstd", 1.0)]
    path.write_text(json.dumps([asdict(Baseline(*line, 100, "as it was")) for line in lines]))
    found = gaps({"web": 2.0, "code": 1.0}, read_baselines(tmp_path))
    assert found == [Gap("web", "n-gram", 4.5, 2.0), Gap("web", "zstd", 2.5, 2.0)]
    assert [each.gap for each in found] == [2.5, 0.5]
    path.write_text('{"web": 4.5}')
    with pytest.raises(DataError, match=r"baselines.json: cannot be read"):
        read_baselines(tmp_path)
