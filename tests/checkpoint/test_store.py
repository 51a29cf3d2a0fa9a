"""Checkpoints of training, of one process: exact, whole or absent, kept and removed by the rules."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from checkpoint import store_processes as processes
from checkpoint.store_processes import start
from tapwater.checkpoint import store as store_module
from tapwater.checkpoint.store import Store
from tapwater.errors import CheckpointError

FACTS = {"cursor": {"seed": 3, "drawn": 2**60}, "rate": 0.1, "none": None, "history": [1, 2.5, "x", True]}


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(5, 7, generator=generator),
        "model.half": torch.randn(9, generator=generator).bfloat16(),
        "model.special": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "optimizer.weight.exp_avg": torch.randn(5, 7, generator=generator),
        "optimizer.weight.step": torch.tensor(3.0),
        "random.bytes": torch.randint(0, 256, (64,), generator=generator, dtype=torch.uint8),
    }


def empty() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state().items()}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "checkpoints", keep_last=2, keep_best=True)
    yield made
    made._thread.shutdown()


def save(store: Store, step: int, score: float | None = None) -> None:
    store.save(step, state(step), FACTS, score)
    store.wait()


def steps(store: Store) -> list[int]:
    return [saved.step for saved in store.listing().complete]


def names(store: Store) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_what_is_loaded_is_what_was_saved_bit_by_bit(store: Store) -> None:
    save(store, 4)
    loaded = empty()
    assert store.load(4, loaded) == FACTS
    for name, tensor in state(4).items():
        assert raw(loaded[name]) == raw(tensor), name
    model_only = {name: tensor for name, tensor in empty().items() if name.startswith("model.")}
    store.load(4, model_only)
    assert torch.equal(model_only["model.weight"], state(4)["model.weight"])


def test_equal_states_give_equal_files_wherever_they_lie(store: Store, tmp_path: Path) -> None:
    save(store, 4)
    loaded = empty()
    facts = store.load(4, loaded)
    again = Store(tmp_path / "elsewhere", 1, False)
    again.save(4, loaded, facts, None)
    again.close()
    for path in (store.directory / "step-00000004").iterdir():
        assert path.read_bytes() == (again.directory / "step-00000004" / path.name).read_bytes(), path.name


def test_the_newest_and_the_best_are_kept(store: Store) -> None:
    for step, score in enumerate([3.0, 1.0, 2.0, None, 4.0], start=1):
        save(store, step, score)
    assert steps(store) == [2, 4, 5]
    best, latest = store.best(), store.latest()
    assert best is not None and (best.step, best.score) == (2, 1.0)
    assert latest is not None and latest.step == 5
    save(store, 6, 1.0)  # as good, and newer
    assert steps(store) == [5, 6]
    assert names(store) == ["step-00000005", "step-00000006"]


def test_going_back_removes_what_came_after(store: Store) -> None:
    save(store, 1)
    save(store, 2)
    with pytest.raises(CheckpointError, match="is saved already"):
        save(store, 2)
    store.rewind(1)
    assert steps(store) == [1]
    save(store, 2)
    assert steps(store) == [1, 2]


def only(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "manifest.json").unlink(), "never finished"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json: not valid JSON"),
        (lambda d: only(d, "*.distcp").unlink(), "__0_0.distcp: is missing"),
        (lambda d: (d / ".metadata").unlink(), ".metadata: is missing"),
        (lambda d: only(d, "*.distcp").write_bytes(b""), "__0_0.distcp: has 0 bytes"),
        (lambda d: (d / "facts.json").write_text("{}"), "facts.json: has 2 bytes"),
        (lambda d: d.rename(d.with_name("step-00000003")), "is of step 2, the directory is called step-00000003"),
    ],
)
def test_an_incomplete_checkpoint_is_passed_over_and_named(
    store: Store, damage: Callable[[Path], object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, 1)
    save(store, 2)
    damage(store.directory / "step-00000002")
    latest = store.latest()
    assert latest is not None and latest.step == 1
    assert words in caplog.text
    (reason,) = store.listing().incomplete
    assert words in reason
    with pytest.raises(CheckpointError):
        store.load(2, empty())
    save(store, 2)
    save(store, 3)
    assert 1 not in steps(store) and steps(store)[-1] == 3  # what is incomplete counts for nothing


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "facts.json"])
def test_one_changed_bit_is_an_error_with_both_hashes(store: Store, file: str) -> None:
    save(store, 1)
    path = store.directory / "step-00000001"
    change(path / file)
    expected = json.loads((path / "manifest.json").read_text())["files"][file]["sha256"]
    with pytest.raises(CheckpointError, match=rf"{file}: is damaged: its sha256 is [0-9a-f]{{64}}, .* says {expected}"):
        store.load(1, empty())


def test_what_does_not_fit_is_named(store: Store) -> None:
    save(store, 1)
    held = empty()
    with pytest.raises(CheckpointError, match=r"model.weight is \[5, 7\] float32, \[5, 8\] float32 is wanted"):
        store.load(1, held | {"model.weight": torch.zeros(5, 8)})
    with pytest.raises(CheckpointError, match=r"model.half is \[9\] bfloat16, \[9\] float32 is wanted"):
        store.load(1, held | {"model.half": torch.zeros(9)})
    with pytest.raises(CheckpointError, match=r"holds no tensor model.other"):
        store.load(1, held | {"model.other": torch.zeros(9)})
    with pytest.raises(CheckpointError, match=r"nobody asked for tensor model.half and 1 more"):
        store.load(1, {"model.weight": torch.zeros(5, 7)})
    with pytest.raises(CheckpointError, match=r"no such checkpoint; there are steps 1$"):
        store.load(5, held)


@pytest.mark.parametrize("facts", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": float("nan")}, {"a": Path()}])
def test_facts_that_would_come_back_as_something_else_are_refused(store: Store, facts: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        store.save(1, state(), facts, None)
    assert store.latest() is None


def test_training_goes_on_while_files_are_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    write = store_module.write_shards

    def slowly(*arguments: object) -> None:
        begun.set()
        assert may_end.wait(20)
        write(*arguments)

    monkeypatch.setattr(store_module, "write_shards", slowly)
    tensors = state(1)
    store.save(1, tensors, FACTS, None)
    assert begun.wait(20)
    for tensor in tensors.values():
        tensor.zero_()
    may_end.set()
    loaded = empty()
    store.load(1, loaded)
    assert raw(loaded["model.weight"]) == raw(state(1)["model.weight"])


def test_a_failed_save_is_told_once_and_leaves_the_one_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.files, "write_manifest", full_disk)
        store.save(2, state(2), FACTS, None)
        with pytest.raises(
            CheckpointError, match=r"step-00000002: was not saved: .*No space left on device.*before it is kept"
        ):
            store.save(3, state(3), FACTS, None)
    assert names(store) == ["step-00000001"]
    store.load(1, empty())
    save(store, 3)
    assert steps(store) == [1, 3]


def test_a_full_disk_is_one_clear_error(store: Store) -> None:
    process = start(processes.fill_the_disk, store.directory)
    process.join(processes.TIMEOUT_S)
    assert process.exitcode == 0
    assert names(store) == ["step-00000001"]


@pytest.mark.parametrize(("sent", "left"), [(signal.SIGINT, [1, 2]), (signal.SIGKILL, [1])])
def test_a_signal_while_files_are_written(store: Store, sent: signal.Signals, left: list[int]) -> None:
    """Ctrl-C ends the program when the files are written; what a kill leaves is cleaned up by the next save."""
    process = start(processes.save_slowly, store.directory)
    assert process.pid is not None
    while not (store.directory / "step-00000002.partial" / ".metadata").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, sent)
    processes.go_on(store.directory).touch()
    process.join(processes.TIMEOUT_S)
    assert process.exitcode == (1 if sent == signal.SIGINT else -signal.SIGKILL)
    assert steps(store) == left
    store.load(1, {"model.a": torch.zeros(100_000)})
    if sent == signal.SIGKILL:
        assert names(store) == ["step-00000001", "step-00000002.partial"]
    save(store, 3)
    assert not any(name.endswith(".partial") for name in names(store))


def test_a_checkpoint_is_there_though_older_ones_cannot_be_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(store, step)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_remove_old", denied)
        store.save(3, state(3), FACTS, None)
        with pytest.raises(CheckpointError, match=r"step-00000003: is saved, but older ones were not removed"):
            store.wait()
    assert steps(store) == [1, 2, 3]
