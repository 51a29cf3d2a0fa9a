"""The files of a source: which, in which order, and their bytes, unpacked."""

import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path

import zstandard

from tapwater.config.corpus import SourceSection
from tapwater.data.tally import Tally
from tapwater.errors import DataError

PACKED = (".gz", ".zst")
_PART = 2**16  # bytes
_AS_IT_IS = getattr(os, "O_BINARY", 0)  # Windows else changes ends of lines


def suffix_of(name: str) -> str:
    """In lower case, of what is inside: `.jsonl` of `a.jsonl.gz`."""
    name = name[name.rfind(os.sep) + 1 :].lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    dot = name.rfind(".")
    return name[dot:] if dot > 0 else ""


def files_of(source: SourceSection, suffixes: tuple[str, ...], seed: int, tally: Tally) -> Iterator[tuple[str, str]]:
    """Absolute paths and names, in the order of names; with limit_bytes in an order drawn from `seed`.

    `suffixes` are the kind's own; none: all files. A file named in `paths` itself is read whatever its suffix.
    Names are relative to what all paths have in common. What is no file (a dangling link) is counted in `tally`.
    Raises DataError for a path that is not there.
    """
    roots = sorted({str(Path(root).absolute()) for path in source.paths for root in _expand(path, source.name)})
    base = os.path.commonpath([root if Path(root).is_dir() else str(Path(root).parent) for root in roots])
    prefix = base.rstrip(os.sep) + os.sep
    found = _walk(roots, base, source, source.include or suffixes)
    if source.limit_bytes is not None:
        found = iter(sorted(found, key=lambda name: blake2b(os.fsencode(f"{seed} {name}"), digest_size=8).digest()))
    for name in found:
        path = f"{prefix}{name}"  # an object of pathlib costs more than to read the file
        if not name.isascii():
            name = os.fsencode(name).decode(errors="replace")  # a file's name need not be UTF-8, a document's is
        if os.path.isfile(path):  # noqa: PTH113
            yield path, name
        else:
            tally.drop_file(source.name, name, 0, "not_a_file")


def check_paths(source: SourceSection) -> None:
    """DataError for a path that is not there."""
    for path in source.paths:
        _expand(path, source.name)


def _expand(path: str, name: str) -> list[str]:
    matches = [path]
    if glob.has_magic(path) and not Path(path).exists():
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not matches or not os.path.lexists(matches[0]):
        raise DataError(f"source {name}: {path}: no such file or directory")
    return matches


def _walk(roots: list[str], base: str, source: SourceSection, suffixes: tuple[str, ...]) -> Iterator[str]:
    start = len(base.rstrip(os.sep)) + 1
    whole = tuple(pattern for pattern in source.exclude if pattern.endswith("*"))  # they exclude all below a match
    for root in roots:
        if not Path(root).is_dir():
            yield root[start:]
            continue
        for directory, directories, files in os.walk(root, onerror=_refuse):  # links to directories are not followed
            prefix = f"{directory}{os.sep}"[start:]
            directories[:] = sorted(each for each in directories if not _matches(f"{prefix}{each}{os.sep}", whole))
            for file in sorted(files):
                name = prefix + file
                if (not suffixes or suffix_of(file) in suffixes) and not _matches(name, source.exclude):
                    yield name


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read the directory {error.filename}: {error.strerror}") from None


def read_bytes(path: str, most: int) -> bytes:
    """At the most `most` bytes, unpacked. Raises DataError for a file that is not readable or breaks off."""
    if path.lower().endswith(PACKED):
        with unpacked(path) as stream:
            return stream.read(most)
    try:
        file = os.open(
            path, os.O_RDONLY | _AS_IT_IS
        )  # most files are small: an object of Python's costs as much as to read one
        try:
            parts: list[bytes] = []
            while most > 0 and (part := os.read(file, min(most, _PART))):
                parts.append(part)
                most -= len(part)
        finally:
            os.close(file)
    except OSError as error:
        raise _cannot_read(path, error) from None
    return b"".join(parts)


@contextmanager
def unpacked(path: Path | str) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, of what is inside of .gz and .zst; whatever breaks while reading is a DataError."""
    try:
        with _open(Path(path)) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged or cut off: {error}") from None
    except OSError as error:
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path | str, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror or error}")


def _open(path: Path) -> io.BufferedIOBase:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".zst":
        return io.BufferedReader(_WholeFrames(path), 2**20)
    return path.open("rb")


class _WholeFrames(io.RawIOBase):
    """What zstandard frames hold. Unlike zstandard's own reader it raises EOFError when the last frame breaks off."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyrefly: ignore[bad-override]
        while not self._ready:
            self._packed = self._packed or self._file.read(2**17)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends inside a zstandard frame")
                return 0
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(frame.decompress(self._packed))
            self._frame, self._packed = (None, frame.unused_data) if frame.eof else (frame, b"")
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
