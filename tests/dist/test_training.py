"""Every mesh trains the model that one process trains: losses, gradients, routing and weights after three steps."""

from pathlib import Path

import pytest

from dist.processes import run
from dist.training import (
    AHEAD,
    BIASED,
    DROPPING,
    SIGMOID,
    SIX_EXPERTS,
    STEPS,
    TIED,
    V2,
    Case,
    Found,
    by_parallel,
    by_torch,
    resumed,
    saved,
)
from tapwater.config import BalanceConfig
from tapwater.config.pretrain import ParallelSection

# Float32 sums in another order. Measured: losses to 6e-7, gradients to 1e-6 of a tensor's largest, weights to 4e-6.
LOSS, GRADIENT, WEIGHT = 2e-6, 5e-6, 2e-5
CASES = {
    "v2": Case(),
    "dropping": Case(balance=DROPPING),
    "bias": Case(SIGMOID, BIASED),
    "lonely": Case(SIGMOID, BIASED, lonely_expert=True),
    "six": Case(SIX_EXPERTS, BalanceConfig(num_devices=2, max_devices=2)),
    "ahead": Case(AHEAD, V2),
    "tied": Case(TIED),
    "ramp": Case(first_rows=4),
    "again": Case(recomputation="full"),
    "ahead_again": Case(AHEAD, V2, recomputation="full"),
}


def looped(schedule: str, dp: int = 1, ep: int = 1) -> ParallelSection:
    return ParallelSection(dp, ep, 2, schedule, 1 if schedule == "1f1b" else 2)


FAST = [("v2", ParallelSection(2, 2)), ("ramp", looped("zbv"))]
TWO = [
    ("v2", ParallelSection(2)),
    ("dropping", ParallelSection(2, 2)),
    ("bias", ParallelSection(2, 2)),
    ("lonely", ParallelSection(2, 2)),  # one process is sent no token at all
    ("ahead", ParallelSection(2, 2)),
    ("tied", ParallelSection(2)),
    ("ramp", looped("1f1b")),
    ("v2", looped("interleaved")),
    ("v2", looped("interleaved_zero_bubble")),
    ("dropping", looped("zbv")),
    ("bias", looped("1f1b")),
    ("again", ParallelSection(2, 2)),
    ("ahead_again", ParallelSection(2, 2)),
    ("again", looped("1f1b")),
    ("again", looped("interleaved_zero_bubble")),
    ("again", looped("zbv")),
]
FOUR = [
    ("v2", ParallelSection(4)),
    ("v2", ParallelSection(4, 2)),
    ("lonely", ParallelSection(4, 4)),
    ("six", ParallelSection(4, 2)),  # 3 experts in 2 processes: shared by rows
    ("v2", looped("1f1b", 2)),
    ("v2", looped("interleaved", 2, 2)),
    ("bias", looped("interleaved_zero_bubble", 2, 2)),
    ("dropping", looped("zbv", 2, 2)),
]


def check(name: str, found: Found, directory: Path | None = None) -> None:
    expected = by_torch(CASES[name])
    assert found.again == (CASES[name].recomputation == "full")
    assert found.losses == pytest.approx(expected.losses[-len(found.losses) :], abs=LOSS)
    assert found.norms == pytest.approx(expected.norms[-len(found.norms) :], rel=GRADIENT)
    assert found.loads == expected.loads[-len(found.loads) :]
    assert found.weights.keys() == expected.weights.keys()
    for key, weight in expected.weights.items():
        assert float((found.weights[key] - weight).abs().max()) < WEIGHT, key
    if len(found.losses) == STEPS:
        assert found.evaluation == pytest.approx(expected.evaluation, abs=LOSS)
        assert found.gradients.keys() == expected.gradients.keys()
        for key, gradient in expected.gradients.items():
            scale = float(gradient.abs().max())
            assert float((found.gradients[key] - gradient).abs().max()) <= GRADIENT * scale, key


def check_all(processes: int, directory: Path, wanted: list[tuple[str, ParallelSection]]) -> None:
    answers = run(processes, directory, [(by_parallel, (CASES[name], section)) for name, section in wanted])
    for name, section in wanted:
        found = answers[0].pop(0)
        assert isinstance(found, Found), f"{name} on {section}: {found}"
        check(name, found)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    check_all(2, tmp_path, FAST)


@pytest.mark.slow
def test_more_meshes_of_two_processes(tmp_path: Path) -> None:
    check_all(2, tmp_path, TWO)


@pytest.mark.slow
def test_meshes_of_four_processes(tmp_path: Path) -> None:
    check_all(4, tmp_path, FOUR)


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path: Path) -> None:
    case, stored = CASES["bias"], str(tmp_path / "stored")
    first, others = (
        ParallelSection(4, 2),
        [ParallelSection(2, 2, 2, "zbv", 2), ParallelSection(4, 4), ParallelSection(4)],
    )
    jobs = [(saved, (case, first, stored)), *((resumed, (case, section, stored)) for section in others)]
    answers = run(4, tmp_path, jobs)[0]
    for section, found in zip([first, *others], answers, strict=True):
        assert found is None or isinstance(found, Found), f"{section}: {found}"
    for found in (*answers[1:], resumed(case, ParallelSection(), stored)):
        check("bias", found)
