"""What makes a directory a checkpoint of training: a manifest, written last, that names every file, size and hash.

<checkpoints>/step-00000100/    complete: renamed from step-00000100.partial once all is on the disk
  __<process>_<n>.distcp        tensors, written by each process (torch.distributed.checkpoint)
  .metadata                     where in them each tensor lies
  facts.json                    what is not a tensor
  manifest.json                 the step, its score, and the sha256 of the files above
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from tapwater.config import read_json
from tapwater.config.parse import from_mapping
from tapwater.errors import CheckpointError, ConfigError

MANIFEST_FILE = "manifest.json"
FACTS_FILE = "facts.json"
PARTIAL = ".partial"  # being written, or what was left of that
REMOVED = ".removed"  # being removed, or what was left of that
FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class StoredFile:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says; the lower `score` the better, None: not measured."""

    format_version: int
    step: int
    score: float | None
    files: Mapping[str, StoredFile]

    def __post_init__(self) -> None:
        if self.score is not None and not isfinite(self.score):
            raise ConfigError(f"score must be a finite number, got {self.score}")
        for name in self.files:
            if Path(name).name != name:
                raise ConfigError(f"files: {name!r} is not a name in this directory")
        if FACTS_FILE not in self.files:
            raise ConfigError(f"files: {FACTS_FILE} is missing")


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint; whether its files hold what was written is known once they are read."""

    step: int
    path: Path
    score: float | None


@dataclass(frozen=True)
class Listing:
    """The checkpoints of a directory, oldest first, and why each other `step-` directory is none."""

    complete: tuple[Saved, ...]
    incomplete: tuple[str, ...]

    def latest(self) -> Saved | None:
        return self.complete[-1] if self.complete else None

    def best(self) -> Saved | None:
        """The lowest score, of equal ones the newest; None when none was scored."""
        scored = [(saved.score, -saved.step, saved) for saved in self.complete if saved.score is not None]
        return min(scored)[-1] if scored else None

    def at(self, step: int) -> Saved | None:
        return next((saved for saved in self.complete if saved.step == step), None)


def step_path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08}"


def list_checkpoints(directory: Path) -> Listing:
    """Every complete checkpoint under `directory`: its manifest can be read, every file is there and of its size."""
    complete: list[Saved] = []
    incomplete: list[str] = []
    for path in sorted(directory.glob("step-*")):
        if path.name.endswith((PARTIAL, REMOVED)):
            continue
        try:
            manifest = read_manifest(path)
            complete.append(Saved(manifest.step, path, manifest.score))
        except CheckpointError as error:
            incomplete.append(str(error))
    return Listing(tuple(sorted(complete, key=lambda saved: saved.step)), tuple(incomplete))


def leftovers(directory: Path) -> list[Path]:
    """What saves and removals that were interrupted left behind."""
    return [path for path in directory.glob("step-*") if path.name.endswith((PARTIAL, REMOVED))]


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there; CheckpointError says what is missing or cut short."""
    where = path / MANIFEST_FILE
    if not where.is_file():
        raise CheckpointError(f"{path}: has no {MANIFEST_FILE}, so it was never finished")
    try:
        raw = read_json(where)
        if raw.get("format_version") != FORMAT_VERSION:
            version = raw.get("format_version")
            raise ConfigError(f"{where}: format_version {version!r} is not supported, only {FORMAT_VERSION}")
        manifest = from_mapping(Manifest, raw, str(where))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    name = _NAME.fullmatch(path.name)
    if name is not None and int(name[1]) != manifest.step:
        raise CheckpointError(f"{where}: is of step {manifest.step}, the directory is called {path.name}")
    for file, stored in manifest.files.items():
        try:
            size = (path / file).stat().st_size
        except OSError:
            raise CheckpointError(f"{path / file}: is missing, {MANIFEST_FILE} names it") from None
        if size != stored.bytes:
            raise CheckpointError(f"{path / file}: has {size} bytes, {MANIFEST_FILE} says {stored.bytes}: truncated?")
    return manifest


def verify(path: Path, manifest: Manifest, files: Iterable[str]) -> None:
    """Read `files` whole; CheckpointError names the first whose hash is not the manifest's, and both hashes."""
    for file in files:
        try:
            found = stored_file(path / file).sha256
        except OSError as error:
            raise CheckpointError(f"{path / file}: cannot be read: {error}") from None
        expected = manifest.files[file].sha256
        if found != expected:
            raise CheckpointError(
                f"{path / file}: is damaged: its sha256 is {found}, {MANIFEST_FILE} says {expected}; "
                f"use another checkpoint and remove {path.name}"
            )


def read_facts(path: Path) -> dict[str, Any]:
    try:
        return read_json(path / FACTS_FILE)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def stored_file(path: Path) -> StoredFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return StoredFile(path.stat().st_size, digest.hexdigest())


def plain_json(facts: Mapping[str, Any]) -> str:
    """`facts` as JSON; ValueError for what would come back as something else: tuples, keys that are numbers, NaN."""
    text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False)
    if not _same(json.loads(text), facts):
        raise ValueError("facts of a checkpoint must be plain JSON: dicts with string keys, lists, strings, numbers")
    return text + "\n"


def _same(read: object, given: object) -> bool:
    if isinstance(given, dict) and isinstance(read, dict):
        return read.keys() == given.keys() and all(_same(read[key], value) for key, value in given.items())
    if isinstance(given, list) and isinstance(read, list):
        return len(read) == len(given) and all(_same(*pair) for pair in zip(read, given, strict=True))
    return type(read) is type(given) and read == given


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_synced(path / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1) + "\n")
    sync_directory(path)


def write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring names, not contents, to the disk: a rename is not safe before."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
