"""A GGUF file's header, checked field by field.

Not by the reader of the `gguf` package: that takes five seconds over a vocabulary of 49,000 tokens, and answers damage
with whatever exception the damage runs into.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from tapwater.checkpoint.gguf_container import SUPPORTED, GgufContainer, StoredTensor, Value
from tapwater.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # they differ only in that 3 may be big-endian, which is refused
MAX_DIMENSIONS = 4
MAX_NAME = 256  # characters; llama.cpp's longest keys have half as many, a damaged length gives thousands
DEFAULT_ALIGNMENT = 32
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "B",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def read_container(path: Path) -> GgufContainer:
    """Read and check the header of a GGUF file.

    Raises CheckpointError for a file that is missing, not GGUF, of another version or byte order, truncated anywhere,
    inconsistent, or holding a tensor type that is not supported.
    """
    try:
        with path.open("rb") as file:
            return _Header(path, file).container()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


class _Header:
    """A file read front to back; no count or length is believed before the bytes it promises are known to be there."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._position = 0
        self._size = os.fstat(file.fileno()).st_size

    def container(self) -> GgufContainer:
        self._check_magic()
        tensor_count, key_count = self._numbers("Q", 2, "the header's counts")
        metadata: dict[str, Value] = {}
        for index in range(key_count):
            key = self._name(f"the name of metadata key {index + 1} of {key_count}")
            if key in metadata:
                raise self._damaged(f"metadata key {key!r} is there twice")
            metadata[key] = self._value(self._number("I", f"the type of {key!r}"), f"metadata {key!r}")
        declared: dict[str, StoredTensor] = {}
        for index in range(tensor_count):
            name = self._name(f"the name of tensor {index + 1} of {tensor_count}")
            if name in declared:
                raise self._damaged(f"tensor {name!r} is there twice")
            declared[name] = self._tensor(name)
        return GgufContainer(self._path, metadata, self._placed(declared, metadata))

    def _check_magic(self) -> None:
        magic = self._file.read(len(MAGIC))
        self._position = len(magic)
        if magic != MAGIC:
            found = f"it starts with {magic!r}" if magic else "it is empty"
            raise CheckpointError(f"{self._path}: not a GGUF file: {found}")
        (version,) = self._numbers("I", 1, "the version")
        if version in VERSIONS:
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise CheckpointError(f"{self._path}: big-endian GGUF is not supported; convert it to little-endian")
        raise CheckpointError(f"{self._path}: GGUF version {version} is not supported, only {VERSIONS}")

    def _tensor(self, name: str) -> StoredTensor:
        """One entry of the tensor list; its offset still counts from the start of the data."""
        dimensions = self._number("I", f"the dimension count of tensor {name!r}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = self._numbers("Q", dimensions, f"the shape of tensor {name!r}")[::-1]
        kind_id = self._number("I", f"the type of tensor {name!r}")
        offset = self._number("Q", f"the offset of tensor {name!r}")
        try:
            kind = GGMLQuantizationType(kind_id)
        except ValueError:
            raise self._damaged(f"tensor {name!r} has the unknown type {kind_id}") from None
        if kind not in SUPPORTED:
            names = ", ".join(each.name for each in SUPPORTED)
            raise CheckpointError(f"{self._path}: tensor {name!r} is stored as {kind.name}; supported are {names}")
        block = GGML_QUANT_SIZES[kind][0]
        if 0 in shape or shape[-1] % block:
            raise self._damaged(f"tensor {name!r} of type {kind.name} has the impossible shape {list(shape)}")
        return StoredTensor(kind, shape, offset)

    def _placed(self, declared: dict[str, StoredTensor], metadata: dict[str, Value]) -> dict[str, StoredTensor]:
        """The tensors with offsets from the start of the file: they follow each other, each aligned."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {str(alignment)[:80]}, not a power of two")
        start = expected = _aligned(self._position, alignment)
        placed = {}
        for name, tensor in declared.items():
            offset = start + tensor.offset
            if offset != expected:
                raise self._damaged(f"tensor {name!r} starts at byte {offset}, the tensors before it end at {expected}")
            if offset + tensor.nbytes > self._size:
                raise self._damaged(
                    f"truncated: tensor {name!r} ends at byte {offset + tensor.nbytes}, the file at {self._size}"
                )
            placed[name] = StoredTensor(tensor.kind, tensor.shape, offset)
            expected = _aligned(offset + tensor.nbytes, alignment)
        return placed

    def _value(self, kind_id: int, what: str) -> Value:
        try:
            kind = GGUFValueType(kind_id)
        except ValueError:
            raise self._damaged(f"{what} has the unknown type {kind_id}") from None
        if kind is GGUFValueType.STRING:
            return self._text(what)
        if kind is GGUFValueType.ARRAY:
            return self._list(what)
        number = self._number(_SCALARS[kind], what)
        if kind is GGUFValueType.BOOL:
            if number not in (0, 1):
                raise self._damaged(f"{what} is {number}, neither true nor false")
            return bool(number)
        # A float32 stands for the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(number))) if kind is GGUFValueType.FLOAT32 else number

    def _list(self, what: str) -> Value:
        kind_id = self._number("I", f"the element type of {what}")
        count = self._number("Q", f"the length of {what}")
        if kind_id == GGUFValueType.STRING:
            return [self._text(what) for _ in range(count)]
        if kind_id not in _SCALARS:
            raise self._damaged(f"{what} is a list of the unknown type {kind_id}")
        return list(self._numbers(_SCALARS[GGUFValueType(kind_id)], count, what))

    def _name(self, what: str) -> str:
        name = self._text(what)
        if not 0 < len(name) <= MAX_NAME:
            raise self._damaged(f"{what} has {len(name)} characters")
        return name

    def _text(self, what: str) -> str:
        raw = self._bytes(self._number("Q", f"the length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is not UTF-8: {error}") from None

    def _number(self, code: str, what: str) -> int:
        return self._numbers(code, 1, what)[0]

    def _numbers(self, code: str, count: int, what: str) -> tuple[int, ...]:
        raw = self._bytes(count * struct.calcsize(f"<{code}"), what)
        return struct.unpack(f"<{count}{code}", raw)

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._size - self._position:
            raise self._damaged(
                f"truncated: {what} at byte {self._position} takes {count} bytes, the file ends at {self._size}"
            )
        raw = self._file.read(count)
        if len(raw) != count:
            raise self._damaged(f"truncated while it was read: {what} at byte {self._position}")
        self._position += count
        return raw

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: damaged GGUF header: {what}")


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
