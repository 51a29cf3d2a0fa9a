"""The files of a run's metrics: exact through interruptions, and readable by others."""

import json
from dataclasses import asdict, replace
from decimal import Decimal
from math import inf, nan
from pathlib import Path

import pytest

from tapwater.errors import TrainingError
from tapwater.train import metrics as module
from tapwater.train.metrics import (
    Evaluation,
    Filled,
    LoadSummary,
    MetricsLog,
    StepMetrics,
    read_evaluations,
    read_steps,
)
from tapwater.train.tensorboard import TensorBoard

FIRST = StepMetrics(
    step=1,
    loss=5.25,
    ce=5.0,
    expert_loss=0.003,
    device_loss=0.05,
    communication_loss=0.02,
    mtp_loss=5.5,
    lr=1e-4,
    grad_norm=2.0,
    sequences=8,
    tokens=4096,
    tokens_per_s=900.0,
    mfu=0.4,
    seconds=4.5,
    cost_usd=Decimal("0.000123"),
    load_LE=((3, 1, 0, 4), (2, 2, 2, 2)),
)


FILLED = Filled("a = 1\n", "b = 2", "\nc = 3\n", "b = 1\n```", None)


def write(directory: Path, resumed: int, steps: range) -> None:
    with MetricsLog(directory, resumed) as log:
        for step in steps:
            log.step(replace(FIRST, step=step))
            if step % 10 == 0:
                log.evaluation(Evaluation(step, 4096 * step, 2.5, {"web": 2.0, "code": 3.0}), [FILLED])


def test_a_line_holds_every_number_and_the_load_of_every_layer(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 2))
    (line,) = read_steps(tmp_path)
    assert {key: line[key] for key in ("step", "loss", "mtp_loss", "tokens")} == {
        "step": 1, "loss": 5.25, "mtp_loss": 5.5, "tokens": 4096,
    }  # fmt: skip
    assert Decimal(line["cost_usd"]) == FIRST.cost_usd
    assert line["load"] == [
        {"max_over_mean": 2.0, "min_over_mean": 0.0, "unused": 1},
        {"max_over_mean": 1.0, "min_over_mean": 1.0, "unused": 0},
    ]
    assert module.summarise([0, 0]) == LoadSummary(0.0, 0.0, 2)


def test_lines_are_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.step(FIRST)
    assert len(read_steps(tmp_path)) == 1
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk that everybody has is Linux's")
def test_a_full_disk_names_the_file_and_what_to_do() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(TrainingError, match=r"/dev/full: cannot be written \(No space left.*make room"),
    ):
        module._write(full, {"step": 1})


def test_resuming_leaves_every_step_once(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 46))
    write(tmp_path, 30, range(31, 51))
    assert [line["step"] for line in read_steps(tmp_path)] == list(range(1, 51))
    evaluations = read_evaluations(tmp_path)
    assert [line["step"] for line in evaluations] == [10, 20, 30, 40, 50]
    assert evaluations[-1]["infills"] == [asdict(FILLED)]


def test_an_unfinished_last_line_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":6,"loss":4.')
    assert [line["step"] for line in read_steps(tmp_path)] == [1, 2, 3, 4, 5]
    write(tmp_path, 5, range(6, 8))
    assert [line["step"] for line in read_steps(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_damage_inside_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step":2,', b'"step":2,', 1))
    with pytest.raises(TrainingError, match=r"metrics.jsonl: line 2 is damaged"):
        read_steps(tmp_path)
    with pytest.raises(TrainingError, match="directory of a run"):
        read_steps(tmp_path / "nowhere")


def test_a_number_that_is_not_finite_is_null_for_strict_readers(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        log.step(replace(FIRST, loss=nan, grad_norm=inf))
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["loss"] is None and line["grad_norm"] is None


def test_sums_of_loads_cover_all_steps(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 46))
    write(tmp_path, 30, range(31, 61))
    sums = {line["step"]: line["loads"] for line in read_steps(tmp_path) if "loads" in line}
    assert {step: each["steps"] for step, each in sums.items()} == {20: 20, 40: 10, 60: 20}
    assert sums[20]["counts"] == [[60, 20, 0, 80], [40] * 4]


def test_tensorboard_reads_back_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, steps in ((0, range(1, 6)), (3, range(4, 7))):
        board = TensorBoard(tmp_path, resumed)
        for step in steps:
            board.step(replace(FIRST, step=step, loss=float(step + 100 * resumed)))
        board.evaluation(Evaluation(steps[-1], 1, 2.5, {"web": 2.0}, 0.25, 0.5), [FILLED])
        board.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss/total")] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 304.0), (5, 305.0), (6, 306.0),
    ]  # fmt: skip
    assert found.Scalars("load_max/0")[-1].value == 2.0
    assert (found.Scalars("fim/exact")[-1].value, found.Scalars("fim/exact_spm")[-1].value) == (0.25, 0.5)
    shown = found.Tensors("fim/infills/text_summary")[-1]
    assert shown.step == 6
    assert shown.tensor_proto.string_val[0].decode() == "wanted:\n\n    b = 2\n\nwrote:\n\n    b = 1\n    ```\n"
