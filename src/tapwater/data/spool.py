"""Documents on disk between two passes, in order: zstandard frames, each of many documents."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import zstandard

from tapwater.data.document import Document
from tapwater.data.files import unpacked

_LEVEL = -10  # fast: 0.4 of source text is left; it is read back once or twice and then thrown away
_FRAME_BYTES = 2**20


class Spool:
    """Writes documents; a frame is a line of JSON about its documents, and their UTF-8."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._clear()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._file:
            self._flush()

    def write(self, document: Document, utf8: bytes) -> None:
        """`utf8` is the document's text."""
        self._heads.append((len(utf8), document.source, document.name, document.licence, document.language))
        self._texts.append(utf8)
        self._num_bytes += len(utf8)
        if self._num_bytes >= _FRAME_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._heads:
            head = json.dumps(self._heads).encode() + b"\n"
            self._file.write(self._compressor.compress(b"".join([head, *self._texts])))
            self._clear()

    def _clear(self) -> None:
        self._heads: list[tuple[int, str, str, str, str]] = []
        self._texts: list[bytes] = []
        self._num_bytes = 0


def read_spool(path: Path) -> Iterator[Document]:
    """The documents of a finished spool."""
    with unpacked(path) as stream:
        while heads := stream.readline():
            for size, *about in json.loads(heads):
                yield Document(stream.read(size).decode(), *about)
