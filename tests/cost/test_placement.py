"""Balance of placed experts; the example of the EPLB repository is among the published numbers."""

import itertools
import random

import pytest

from tapwater.config import preset
from tapwater.cost.placement import experts_per_device, place_experts, placement_of
from tapwater.errors import ConfigError

V3 = preset("deepseek-v3")
SKEWED = [100 / (rank + 5) for rank in range(256)]
random.Random(0).shuffle(SKEWED)


def test_a_unit_of_v3_is_balanced_by_its_redundant_experts() -> None:
    plain = place_experts(SKEWED, num_slots=256, num_devices=32, num_nodes=4, num_groups=8)
    unit = place_experts(SKEWED, num_slots=288, num_devices=32, num_nodes=4, num_groups=8)
    anywhere = place_experts(SKEWED, num_slots=288, num_devices=32)
    assert set(unit.physical_to_logical) == set(range(256))
    assert len(unit.physical_to_logical) == 288
    assert sum(unit.device_loads) == pytest.approx(sum(SKEWED))
    assert unit.imbalance < 1.1 < 1.5 < plain.imbalance
    assert anywhere.imbalance < unit.imbalance  # free of groups and nodes


def test_groups_stay_on_one_node() -> None:
    unit = place_experts(SKEWED, num_slots=288, num_devices=32, num_nodes=4, num_groups=8)
    nodes = [{expert // 32 for expert in unit.physical_to_logical[start : start + 72]} for start in range(0, 288, 72)]
    assert sorted(group for node in nodes for group in node) == list(range(8))


def test_nodes_that_do_not_divide_the_groups_are_ignored() -> None:
    counts = {"num_slots": 24, "num_devices": 12}
    loads = SKEWED[:16]
    assert place_experts(loads, num_nodes=3, num_groups=4, **counts) == place_experts(loads, **counts)


def test_packing_is_near_the_best_there_is() -> None:
    """All ways to put 8 experts on 4 devices, for random loads."""
    draw = random.Random(1)
    ways = set(itertools.permutations([0, 0, 1, 1, 2, 2, 3, 3]))
    for _ in range(3):
        loads = [draw.random() for _ in range(8)]
        best = min(
            max(sum(load for load, bin_ in zip(loads, way, strict=True) if bin_ == each) for each in range(4))
            for way in ways
        )
        assert max(place_experts(loads, num_slots=8, num_devices=4).device_loads) <= best * 1.05


def test_no_load_is_balanced() -> None:
    assert place_experts([0, 0, 0, 0], num_slots=4, num_devices=2).imbalance == 1
    assert placement_of([1, 3], [0, 1], 2).imbalance == 1.5


@pytest.mark.parametrize(
    ("loads", "counts", "words"),
    [
        ([1] * 8, {"num_slots": 7, "num_devices": 1}, "7 slots cannot hold 8 experts"),
        ([1] * 8, {"num_slots": 9, "num_devices": 2}, "9 num_slots do not divide by 2"),
        ([1] * 8, {"num_slots": 8, "num_devices": 4, "num_nodes": 3}, "4 num_devices do not divide by 3"),
        ([1] * 8, {"num_slots": 8, "num_devices": 4, "num_groups": 3}, "8 experts do not divide by 3"),
        ([1] * 8, {"num_slots": 8, "num_devices": 0}, "num_devices must be at least 1"),
        ([1, -1], {"num_slots": 2, "num_devices": 1}, "load of expert 1 must"),
        ([1, float("nan")], {"num_slots": 2, "num_devices": 1}, "load of expert 1 must"),
    ],
)
def test_impossible_placements_are_refused(loads: list[float], counts: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        place_experts(loads, **counts)


def test_experts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="256 routed and 31 redundant"):
        experts_per_device(V3, redundant=31, devices=32)
