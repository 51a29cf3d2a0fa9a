"""What a run spent: all of its time, kept over interruptions."""

import json
import time
from decimal import Decimal
from pathlib import Path

import pytest

from tapwater.errors import CheckpointError, TrainingError
from tapwater.train.clock import Clock, Spent, read_spent
from training import make_config, make_corpus, make_run


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    time_s = [1000.0]
    monkeypatch.setattr("tapwater.train.clock.time.perf_counter", lambda: time_s[0])
    return time_s


def test_processes_add_up_and_nothing_in_between(now: list[float], tmp_path: Path):
    first = Clock(tmp_path, Decimal("0.36"))
    now[0] += 50
    first.keep()
    now[0] += 5000  # killed, and begun again later
    second = Clock(tmp_path, Decimal("0.36"))
    now[0] += 10
    assert second.spent() == Spent(60.0, Decimal("0.006"))
    assert second.spent(ahead_s=40.0) == Spent(100.0, Decimal("0.01"))
    second.count_before(30.0)  # of a checkpoint from before
    assert second.spent().elapsed_s == 60.0
    second.count_before(70.0)
    assert second.spent().elapsed_s == 80.0
    second.keep()
    assert read_spent(tmp_path) == Spent(80.0, Decimal("0.008"))


def test_without_a_rent_there_is_time_alone(now: list[float], tmp_path: Path):
    clock = Clock(tmp_path, None)
    now[0] += 3
    clock.keep()
    assert read_spent(tmp_path) == Spent(3.0, None)
    assert read_spent(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", ["{", "{}", '{"elapsed_s": -1, "cost_usd": null}',
                                  '{"elapsed_s": 1, "cost_usd": "much"}', '{"elapsed_s": 1, "cost_usd": "NaN"}',
                                  '{"elapsed_s": 1, "cost_usd": "-3"}', '{"elapsed_s": 1, "cost_usd": 0.1}',
                                  '{"elapsed_s": true, "cost_usd": null}'])  # fmt: skip
def test_a_damaged_file_is_an_error(text: str, tmp_path: Path):
    (tmp_path / "spent.json").write_text(text)
    with pytest.raises(TrainingError, match=r"spent\.json: is damaged .* remove it"):
        Clock(tmp_path, None)


def test_what_ended_a_run_is_told_before_that_its_cost_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = make_corpus(tmp_path / "corpus")
    monkeypatch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    def fail(*_: object) -> None:
        monkeypatch.setattr(Path, "write_text", full)
        raise CheckpointError("the checkpoint")

    run = make_run(make_config(corpus, tmp_path / "run", train={"steps": 2}), corpus)
    monkeypatch.setattr(run.saves, "save", fail)
    with pytest.raises(CheckpointError, match="the checkpoint"):
        run.train()
    with pytest.raises(TrainingError, match=r"spent\.json: cannot be written \(No space left"):
        run.clock.keep()


def test_a_run_counts_what_is_before_its_first_step_and_after_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = make_corpus(tmp_path / "corpus")
    slept: list[float] = []

    def sleep(*_: object) -> float:
        slept.append(0.5)
        time.sleep(0.5)
        return 1e10

    monkeypatch.setattr("tapwater.train.loop.matmul_peak", sleep)
    monkeypatch.setattr("tapwater.train.loop.export", sleep)
    config = make_config(corpus, tmp_path / "run", train={"steps": 2})
    start = time.perf_counter()
    finished = make_run(config, corpus).train()
    wall_s = time.perf_counter() - start
    assert len(slept) == 2 and sum(slept) < finished.elapsed_s <= wall_s
    assert wall_s - finished.elapsed_s < 0.3  # less than either
    kept = json.loads((tmp_path / "run" / "spent.json").read_text())
    assert kept["elapsed_s"] == pytest.approx(finished.elapsed_s, abs=0.3)
    assert finished.cost_usd == pytest.approx(Decimal("0.05") * Decimal(finished.elapsed_s) / 3600, rel=Decimal("0.01"))

    again = make_run(config, corpus).train()  # nothing is left but the export, and it is paid for all the same
    assert again.elapsed_s > finished.elapsed_s + sum(slept[2:])
