"""Packed models on disk: a directory whose weights are mapped as they lie, not read.

config.json, tokenizer files     as in a Hugging Face directory
weights.tapwater                 the arrays as kernels read them, each at a multiple of 64 bytes
manifest.json                    where each array is; written last: without it nothing else counts
"""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tapwater.checkpoint.packed_layout import packed_arrays
from tapwater.checkpoint.packing import Changes
from tapwater.checkpoint.weights import Progress
from tapwater.config import ModelConfig, read_config, read_json
from tapwater.config.parse import from_mapping
from tapwater.cost.counts import parameters
from tapwater.errors import CheckpointError, ConfigError
from tapwater.model import PackedWeights
from tapwater.ops.quant import Format, PackedWeight, blocks_shape

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.tapwater"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
ALIGNMENT = 64
FLOAT32 = "float32"
READ_BYTES = 2**24


@dataclass(frozen=True)
class Record:
    """One array: `shape` is [count, rows, columns] of a packed matrix; errors are those of requantising it."""

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    crc32: int
    stored_as: str  # in the source
    squared_error: float
    squared_norm: float

    def __post_init__(self) -> None:
        if self.format not in (*Format, FLOAT32):
            raise ConfigError(f"format {self.format!r} of array {self.name} is unknown")


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says: the format the whole was asked for, name and size of the original, the arrays."""

    format_version: int
    requested: str
    source: str
    source_bytes: int
    arrays: tuple[Record, ...]

    def __post_init__(self) -> None:
        if self.requested not in list(Format):
            raise ConfigError(f"requested format {self.requested!r} is unknown")

    def notes(self) -> tuple[str, ...]:
        """What was requantised on the way here, as `packing.pack_weights` says it."""
        changes = Changes()
        for record in self.arrays:
            format = None if record.format == FLOAT32 else Format(record.format)
            changes.add(record.stored_as, format, record.squared_error, record.squared_norm)
        return changes.notes()


class PackedDirectory:
    """A packed model; opening checks everything but the weights' bytes, which `verify` does.

    Raises CheckpointError, naming file and array, for what is missing, truncated, of another version, or contradicts
    the configuration.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._weights_file = path / WEIGHTS_FILE
        self.manifest = _read_manifest(path / MANIFEST_FILE)
        try:
            self.config: ModelConfig = read_config(path / CONFIG_FILE)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        try:
            self.nbytes = self._weights_file.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{self._weights_file}: cannot be read: {error}") from None
        self._check()

    def weights(self) -> PackedWeights:
        """All arrays, mapped: memory is taken as kernels touch it, and shared by every process that maps the file.

        The file must not be cut short while they are in use.
        """
        matrices: dict[str, PackedWeight] = {}
        tensors: dict[str, Tensor] = {}
        try:
            # private: whoever wrote to a tensor would change a copy, never the file
            mapped = torch.from_file(str(self._weights_file), shared=False, size=self.nbytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise CheckpointError(f"{self._weights_file}: cannot be mapped: {error}") from None
        for record in self.manifest.arrays:
            raw = mapped[record.offset : record.offset + record.bytes]
            if record.format == FLOAT32:
                tensors[record.name] = raw.view(torch.float32).view(record.shape)
            else:
                format, (count, rows, columns) = Format(record.format), record.shape
                blocks = raw.view(blocks_shape(format, rows, columns, count))
                matrices[record.name] = PackedWeight(format, rows, columns, blocks, count)
        return PackedWeights(matrices, tensors)

    def verify(self, progress: Progress | None = None) -> None:
        """Read every byte and compare checksums; CheckpointError names the first array that differs."""
        with self._weights_file.open("rb") as file:
            for record in self.manifest.arrays:
                found = self._checksum(file, record, progress)
                if found != record.crc32:
                    raise CheckpointError(
                        f"{self._weights_file}: array {record.name} is damaged: its checksum is {found:#010x}, the "
                        f"manifest says {record.crc32:#010x}; quantize the model again"
                    )

    def _checksum(self, file: BinaryIO, record: Record, progress: Progress | None) -> int:
        found, place, end = 0, record.offset, record.offset + record.bytes
        try:
            file.seek(place)
            while raw := file.read(min(end - place, READ_BYTES)):
                found, place = zlib.crc32(raw, found), place + len(raw)
                if progress is not None:
                    progress(place, self.nbytes)
        except OSError as error:
            raise CheckpointError(
                f"{self._weights_file}: array {record.name} cannot be read: {error}; quantize the model again"
            ) from None
        return found

    def _check(self) -> None:
        where = self.path / MANIFEST_FILE
        # before modules are built for a configuration: a damaged one could ask for more than there is memory
        if parameters(self.config).total > 8 * self.nbytes + 2**20:
            raise CheckpointError(f"{self.path / CONFIG_FILE}: describes a model far larger than {WEIGHTS_FILE} holds")
        expected = {array.name: array for array in packed_arrays(self.config)}
        records = {record.name: record for record in self.manifest.arrays}
        if len(records) < len(self.manifest.arrays):
            raise CheckpointError(f"{where}: an array is listed twice")
        for name in sorted(expected.keys() ^ records.keys()):
            what = "is missing" if name in expected else "is not part of the model in config.json"
            raise CheckpointError(f"{where}: array {name} {what}")
        for record in self.manifest.arrays:
            array = expected[record.name]
            if record.shape != array.shape:
                raise CheckpointError(
                    f"{where}: array {record.name} has shape {list(record.shape)}, config.json says {list(array.shape)}"
                )
            if (record.format != FLOAT32) != array.is_matrix:
                raise CheckpointError(f"{where}: array {record.name} cannot be {record.format}")
        expected_places = places((record.format, record.shape) for record in self.manifest.arrays)
        for record, (offset, size) in zip(self.manifest.arrays, expected_places, strict=True):
            if (record.offset, record.bytes) != (offset, size):
                raise CheckpointError(
                    f"{where}: array {record.name} is said to be {record.bytes} bytes at {record.offset}, it must be "
                    f"{size} at {offset}"
                )
            gate = records[record.name.replace("up_proj", "gate_proj")]
            if gate.format != record.format:
                raise CheckpointError(
                    f"{where}: {gate.name} is {gate.format} and {record.name} {record.format}: they must agree"
                )
        end = record.offset + record.bytes
        if self.nbytes != end:
            raise CheckpointError(
                f"{self._weights_file}: has {self.nbytes} bytes, the manifest says {end}: truncated, or another model's"
            )


def is_packed(path: Path) -> bool:
    """Whether `path` is, or was going to be, a packed model."""
    return (path / WEIGHTS_FILE).exists() or ((path / MANIFEST_FILE).exists() and (path / CONFIG_FILE).exists())


def places(arrays: Iterable[tuple[str, tuple[int, ...]]]) -> list[tuple[int, int]]:
    """Offset and size of each array in the file, which follow from formats and shapes alone."""
    found = []
    end = 0
    for format, shape in arrays:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        size = _array_bytes(format, shape)
        found.append((offset, size))
        end = offset + size
    return found


def _array_bytes(format: str, shape: tuple[int, ...]) -> int:
    if format == FLOAT32:
        return 4 * math.prod(shape)
    count, rows, columns = shape
    return math.prod(blocks_shape(Format(format), rows, columns, count))


def _read_manifest(path: Path) -> Manifest:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; without it {path.parent} is no finished packed model")
    try:
        raw = read_json(path)
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format_version {version!r} is not supported, only {FORMAT_VERSION}")
        return from_mapping(Manifest, raw, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
