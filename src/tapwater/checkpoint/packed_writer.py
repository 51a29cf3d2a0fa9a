"""Writing a packed model array by array; what was interrupted goes on after the last whole array.

All happens in `<name>.partial` beside the destination. A journal there lists what is written, each line after its bytes
are on the disk; the manifest comes last, and the directory gets its name when all is done.
"""

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from tapwater.checkpoint.packed_store import (
    CONFIG_FILE,
    FLOAT32,
    FORMAT_VERSION,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    Record,
    places,
)
from tapwater.checkpoint.packing import PackingSource, Planned, plan
from tapwater.checkpoint.weights import Progress
from tapwater.config import ModelConfig, to_hf
from tapwater.config.parse import from_mapping
from tapwater.errors import CheckpointError, ConfigError
from tapwater.ops.quant import Format, PackedWeight
from tapwater.text import Tokenizer

JOURNAL_FILE = "journal.jsonl"
LOCK_FILE = ".lock"


def write_packed(
    config: ModelConfig,
    source: PackingSource,
    tokenizer: Tokenizer,
    format: Format,
    destination: Path,
    progress: Progress | None = None,
) -> None:
    """Write `source` in `format` to the new directory `destination`; `progress` counts bytes.

    Interrupted, it leaves `<destination>.partial`; called again with the same source and format it goes on there.
    Raises CheckpointError when the destination exists, when what is there was begun from another source or for another
    format, and when the disk is full.
    """
    destination = destination.absolute()
    if destination.exists():
        raise CheckpointError(f"{destination}: exists already; choose another directory or remove it first")
    partial = destination.with_name(f"{destination.name}.partial")
    plans = plan(config, source, format)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            records = _write_arrays(partial, plans, _origin(source, format), progress)
            (partial / CONFIG_FILE).write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
            tokenizer.save(partial)
            manifest = Manifest(
                FORMAT_VERSION, format.value, Path(source.where).name, source_bytes(source), tuple(records)
            )
            for path in partial.iterdir():
                with path.open("rb") as file:
                    _sync(file)
            _write_synced(partial / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1) + "\n")
            partial.rename(destination)
        for leftover in (JOURNAL_FILE, LOCK_FILE):
            (destination / leftover).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{destination}: cannot be written: {error}; {partial.name} is kept, and the same command goes on there"
        ) from None


def source_bytes(source: PackingSource) -> int:
    """The size of the files that hold a source's tensors."""
    return sum(path.stat().st_size for path in source.files)


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    try:
        with FileLock(partial / LOCK_FILE, timeout=0):
            yield
    except Timeout:
        raise CheckpointError(f"{partial}: another process is writing there") from None


def _origin(source: PackingSource, format: Format) -> dict[str, object]:
    """What must be the same for a resumed run to end in the same bytes."""
    stats = [(path.name, path.stat()) for path in source.files]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return {"format_version": FORMAT_VERSION, "requested": format.value, "files": files}


def _write_arrays(
    partial: Path, plans: list[Planned], origin: dict[str, object], progress: Progress | None
) -> list[Record]:
    where = places((_format_name(planned), planned.array.shape) for planned in plans)
    total = sum(where[-1])
    records = _resume(partial, origin)
    _check_resumed(partial, records, plans, where)
    mode = "r+b" if records else "wb"
    with (partial / WEIGHTS_FILE).open(mode) as file, (partial / JOURNAL_FILE).open("a", encoding="utf-8") as journal:
        file.truncate(total)
        for planned, (offset, size) in list(zip(plans, where, strict=True))[len(records) :]:
            records.append(_write_array(file, planned, offset))
            journal.write(json.dumps(asdict(records[-1])) + "\n")
            _sync(journal)
            if progress is not None:
                progress(offset + size, total)
    return records


def _write_array(file: IO[bytes], planned: Planned, offset: int) -> Record:
    """Make one array and bring it to the disk."""
    made = planned.make()
    content = made.content.blocks if isinstance(made.content, PackedWeight) else made.content.contiguous()
    raw = content.numpy().data.cast("B")
    file.seek(offset)
    file.write(raw)
    _sync(file)
    return Record(
        name=planned.array.name,
        format=_format_name(planned),
        shape=planned.array.shape,
        offset=offset,
        bytes=len(raw),
        crc32=zlib.crc32(raw),
        stored_as=planned.stored_as,
        squared_error=made.squared_error,
        squared_norm=made.squared_norm,
    )


def _format_name(planned: Planned) -> str:
    return planned.format.value if planned.format else FLOAT32


def _resume(partial: Path, origin: dict[str, object]) -> list[Record]:
    """The arrays that are written already; a journal that has not begun yet begins here."""
    path = partial / JOURNAL_FILE
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    del lines[-1]  # empty, or torn by what ended the last run
    if not lines:
        _write_synced(path, json.dumps(origin) + "\n")
        return []
    begun, *written = [_parsed(line, path) for line in lines]
    if begun != origin:
        what = (
            "another format"
            if begun.get("requested") != origin["requested"]
            else "another source, or one since changed"
        )
        raise CheckpointError(f"{partial}: was begun for {what}; remove it to begin anew")
    _write_synced(path, "".join(f"{line}\n" for line in lines))
    try:
        return [from_mapping(Record, each, str(path)) for each in written]
    except ConfigError as error:
        raise CheckpointError(f"{error}; remove {partial} to begin anew") from None


def _parsed(line: str, path: Path) -> dict:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is damaged; remove {path.parent} to begin anew")
    return value


def _check_resumed(partial: Path, records: list[Record], plans: list[Planned], where: list[tuple[int, int]]) -> None:
    found = [(record.name, record.shape, record.offset, record.bytes) for record in records]
    expected = [(planned.array.name, planned.array.shape, *place) for planned, place in zip(plans, where, strict=True)]
    if found != expected[: len(found)]:
        raise CheckpointError(f"{partial / JOURNAL_FILE}: lists other arrays than the source has; remove {partial}")
    weights = partial / WEIGHTS_FILE
    if found and (not weights.exists() or weights.stat().st_size != sum(where[-1])):
        raise CheckpointError(f"{weights}: is not what the journal speaks of; remove {partial} to begin anew")


def _write_synced(path: Path, text: str) -> None:
    """Replace a file in one step."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        _sync(file)
    new.replace(path)


def _sync(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
