"""Writing that is interrupted anywhere goes on to the same bytes; what cannot be continued says so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from checkpoint.packed_models import write, write_model
from tapwater.checkpoint import PackedDirectory
from tapwater.errors import CheckpointError
from tapwater.ops.quant import Format

PATHS = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


class StopError(Exception):
    """What ends a run in these tests."""


def stop_after(count: int, source: Path, destination: Path) -> None:
    """Write `count` arrays and end there."""
    heard = 0

    def progress(done: int, total: int) -> None:
        nonlocal heard
        heard += 1
        if heard == count:
            raise StopError

    with pytest.raises(StopError):
        write(source, destination, progress=progress)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_stopped_after_every_array(model: Path, tmp_path: Path) -> None:
    expected = contents(write(model, tmp_path / "whole"))
    destination, partial = tmp_path / "packed", tmp_path / "packed.partial"
    count = len(PackedDirectory(tmp_path / "whole").manifest.arrays)
    for _ in range(count - 1):  # one more array each time
        stop_after(1, model, destination)
        assert not destination.exists()
        assert not (partial / "manifest.json").exists()
    heard: list[tuple[int, int]] = []
    write(model, destination, progress=lambda done, total: heard.append((done, total)))
    assert len(heard) == 1
    assert heard[0][0] == heard[0][1]
    assert contents(destination) == expected
    assert not partial.exists()


@pytest.mark.parametrize("torn", [1, 10, -1])
def test_a_torn_line_of_the_journal_is_written_again(torn: int, model: Path, tmp_path: Path) -> None:
    """And so are the bytes it spoke of, whatever they were."""
    expected = contents(write(model, tmp_path / "whole"))
    stop_after(5, model, tmp_path / "packed")
    journal = tmp_path / "packed.partial" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:torn])
    last = PackedDirectory(tmp_path / "whole").manifest.arrays[4]
    with (tmp_path / "packed.partial" / "weights.tapwater").open("r+b") as weights:
        weights.seek(last.offset)
        weights.write(b"\xff" * last.bytes)
    assert contents(write(model, tmp_path / "packed")) == expected


def test_a_journal_without_its_first_line_begins_anew(model: Path, tmp_path: Path) -> None:
    stop_after(3, model, tmp_path / "packed")
    (tmp_path / "packed.partial" / "journal.jsonl").write_text('{"format_ver')
    assert contents(write(model, tmp_path / "packed")) == contents(write(model, tmp_path / "whole"))


def test_stopped_between_the_last_array_and_the_manifest(model: Path, tmp_path: Path) -> None:
    stop_after(len(PackedDirectory(write(model, tmp_path / "whole")).manifest.arrays), model, tmp_path / "packed")
    assert contents(write(model, tmp_path / "packed")) == contents(tmp_path / "whole")


def test_killed(model: Path, tmp_path: Path) -> None:
    """A process that dies without a chance to tidy up."""
    script = f"""
import sys, time
from pathlib import Path
from checkpoint.packed_models import write
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.05)
write(Path({str(model)!r}), Path({str(tmp_path / "packed")!r}), progress=progress)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=PATHS) as process:
        assert process.stdout
        for _ in range(7):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    time.sleep(0.01)
    assert not (tmp_path / "packed").exists()
    heard: list[int] = []
    write(model, tmp_path / "packed", progress=lambda done, total: heard.append(done))
    arrays = PackedDirectory(tmp_path / "packed").manifest.arrays
    assert len(heard) <= len(arrays) - 6
    assert contents(tmp_path / "packed") == contents(write(model, tmp_path / "whole"))


def test_another_format_or_source_is_refused(model: Path, tmp_path: Path) -> None:
    stop_after(3, model, tmp_path / "packed")
    with pytest.raises(CheckpointError, match=r"packed\.partial: was begun for another format; remove it"):
        write(model, tmp_path / "packed", Format.Q8)
    other = write_model(tmp_path / "other", seed=4)
    with pytest.raises(CheckpointError, match="another source, or one since changed"):
        write(other, tmp_path / "packed")
    write(model, tmp_path / "packed")


def test_what_the_journal_speaks_of_must_be_there(model: Path, tmp_path: Path) -> None:
    stop_after(3, model, tmp_path / "packed")
    weights = tmp_path / "packed.partial" / "weights.tapwater"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"weights\.tapwater: is not what the journal speaks of; remove"):
        write(model, tmp_path / "packed")
    weights.write_bytes(whole)
    journal = tmp_path / "packed.partial" / "journal.jsonl"
    for damaged, words in (
        (journal.read_text().replace("embed_tokens", "embed_token"), "lists other arrays than the source has"),
        (journal.read_text().replace('"offset"', '"offs"'), "unknown field 'offs'"),
        (journal.read_text().replace("{", "[", 1), "is damaged"),
    ):
        before = journal.read_text()
        journal.write_text(damaged)
        with pytest.raises(CheckpointError, match=words) as caught:
            write(model, tmp_path / "packed")
        assert "remove" in str(caught.value)
        journal.write_text(before)
    write(model, tmp_path / "packed")


def test_an_existing_destination_is_never_touched(model: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        write(model, tmp_path / "packed")
    assert contents(tmp_path / "packed") == {"mine": b"x"}


def test_one_writer_at_a_time(model: Path, tmp_path: Path) -> None:
    stop_after(1, model, tmp_path / "packed")
    with (
        FileLock(tmp_path / "packed.partial" / ".lock"),
        pytest.raises(CheckpointError, match="another process is writing there"),
    ):
        write(model, tmp_path / "packed")


def test_a_destination_that_cannot_be_made(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(model, tmp_path / "file" / "packed")


def test_a_full_disk_can_be_continued(model: Path, tmp_path: Path) -> None:
    """In a process of its own that may write no file over 100 kB."""
    script = f"""
import resource, signal
from pathlib import Path
from checkpoint.packed_models import write
from tapwater.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(Path({str(model)!r}), Path({str(tmp_path / "packed")!r}))
except CheckpointError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=PATHS)
    assert "cannot be written" in done.stdout
    assert "packed.partial is kept" in done.stdout
    assert contents(write(model, tmp_path / "packed")) == contents(write(model, tmp_path / "whole"))
