"""Checkpoints of several processes: shards to any other mesh, failures and deaths of one of them."""

from pathlib import Path

import pytest

from checkpoint import store_processes as processes
from checkpoint.store_processes import load_and_compare, run_processes
from tapwater.checkpoint.store import Store


@pytest.mark.parametrize(("is_sharded", "readers"), [(True, 4), pytest.param(False, 2, marks=pytest.mark.slow)])
def test_two_processes_save_what_any_number_loads(tmp_path: Path, is_sharded: bool, readers: int) -> None:
    directory = tmp_path / "checkpoints"
    assert run_processes(2, processes.save_and_train_on, directory, is_sharded) == [0, 0]
    assert len(list(directory.glob("step-00000007/__*.distcp"))) == 2
    assert run_processes(1, load_and_compare, directory, False) == [0]
    assert run_processes(readers, load_and_compare, directory, True) == [0] * readers


def test_a_failure_of_one_is_raised_in_all(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    assert run_processes(2, processes.fail_in_one, directory) == [0, 0]
    assert [path.name for path in directory.iterdir()] == ["step-00000001"]


def test_a_killed_process_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    assert run_processes(2, processes.die_in_one, directory) == [0, -9]
    store = Store(directory, 2, True)
    latest = store.latest()
    assert latest is not None and latest.step == 1
