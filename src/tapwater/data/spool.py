"""Documents on disk between two passes: one zstandard stream, in order."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import zstandard

from tapwater.data.document import Document
from tapwater.data.files import unpacked

_LEVEL = -5  # fast: 0.4 of source text is left; it is read back once or twice and then thrown away


class Spool:
    """Writes documents; each is a line of JSON about it and its UTF-8."""

    def __init__(self, path: Path) -> None:
        self._file = zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=_LEVEL))
        self._stream = io.BufferedWriter(self._file, buffer_size=2**20)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stream.close()

    def write(self, document: Document, utf8: bytes) -> None:
        """`utf8` is the document's text."""
        head = [len(utf8), document.source, document.name, document.licence, document.language]
        self._stream.write(json.dumps(head).encode() + b"\n" + utf8)


def read_spool(path: Path) -> Iterator[Document]:
    """The documents of a finished spool."""
    with unpacked(path) as stream:
        while head := stream.readline():
            size, source, name, licence, language = json.loads(head)
            yield Document(stream.read(size).decode(), source, name, licence, language)
