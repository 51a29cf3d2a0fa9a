"""One generator a kind of source: files to documents, one at a time. What cannot be one is counted, never skipped."""

import json
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path

from tapwater.config.corpus import SourceSection
from tapwater.data.debian import PackageLicences, is_reading
from tapwater.data.distributions import file_licences
from tapwater.data.document import Document
from tapwater.data.files import files_of, read_bytes, suffix_of, unpacked
from tapwater.data.language import PROGRAMMING
from tapwater.data.manual import plain_text
from tapwater.data.python_text import trim_prose
from tapwater.data.tally import Tally
from tapwater.errors import DataError

LONGEST_ROW = 2**28  # bytes of a line of jsonl
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")


def read(source: SourceSection, max_chars: int, seed: int, tally: Tally) -> Iterator[Document]:
    """The documents of a source, raw: not normalised, the language of prose not known.

    Files above `max_chars` characters are not read whole: they are counted as too long. Raises DataError for what is
    missing, unreadable or damaged, and for a source without a document.
    """
    num_documents = num_bytes = 0
    for document in _READERS[source.kind](source, 4 * max_chars, seed, tally):  # UTF-8 has 4 bytes at the most
        num_documents += 1
        if source.limit_bytes is not None:
            num_bytes += document.num_bytes
            if num_bytes > source.limit_bytes:
                if num_documents == 1:
                    raise DataError(
                        f"source {source.name}: limit_bytes {source.limit_bytes} is less than its first document, "
                        f"{document.name} of {num_bytes} bytes; raise it"
                    )
                return
        yield document
    if num_documents == 0:
        reasons = ", ".join(
            f"{each.num_documents} {reason}" for reason, each in tally.counts.get(source.name, {}).items()
        )
        reasons = reasons or "no file has a suffix it reads"
        raise DataError(f"source {source.name}: no document in {', '.join(source.paths)} ({reasons})")


def _text(source: SourceSection, max_bytes: int, seed: int, tally: Tally) -> Iterator[Document]:
    for path, name in files_of(source, TEXT_SUFFIXES, seed, tally):
        text = _decoded(path, name, source.name, max_bytes, tally)
        if text is not None:
            yield Document(text, source.name, name, source.licence, "")


def _source(source: SourceSection, max_bytes: int, seed: int, tally: Tally) -> Iterator[Document]:
    licences = file_licences(source.paths)
    for path, name in files_of(source, tuple(PROGRAMMING), seed, tally):
        text = _decoded(path, name, source.name, max_bytes, tally)
        if text is not None:
            suffix = suffix_of(path)
            language = PROGRAMMING.get(suffix, suffix.lstrip(".") or "text")
            document = Document(text, source.name, name, licences.get(path, source.licence), language)
            if source.python_prose == "trim" and language == "python":
                trimmed = _trimmed(document, tally)
                if trimmed is None:
                    continue
                document = trimmed
            yield document


def _trimmed(document: Document, tally: Tally) -> Document | None:
    """What goes of a document counts as one that was dropped, so that it can be looked at."""
    try:
        kept, gone = trim_prose(document.text)
    except SyntaxError:
        tally.drop(document, "not_python")
        return None
    if gone.strip():
        tally.drop(document._replace(text=gone), "prose")
    return document._replace(text=kept)


def _man(source: SourceSection, max_bytes: int, seed: int, tally: Tally) -> Iterator[Document]:
    licences = PackageLicences(source.licence)
    for path, name in files_of(source, (), seed, tally):
        text = _decoded(path, name, source.name, max_bytes, tally)
        if text is None:
            continue
        if text.startswith(".so "):
            tally.drop_file(source.name, name, len(text), "reference_to_a_page")
            continue
        yield Document(plain_text(text), source.name, name, licences.of_page(Path(path)), "")


def _doc(source: SourceSection, max_bytes: int, seed: int, tally: Tally) -> Iterator[Document]:
    licences = PackageLicences(source.licence)
    for path, name in files_of(source, (), seed, tally):
        if not source.include and not is_reading(Path(path)):
            continue
        text = _decoded(path, name, source.name, max_bytes, tally)
        if text is not None:
            yield Document(text, source.name, name, licences.of_documentation(Path(path)), "")


def _jsonl(source: SourceSection, _: int, seed: int, tally: Tally) -> Iterator[Document]:
    for path, file in files_of(source, (".jsonl", ".ndjson"), seed, tally):
        with unpacked(path) as stream:
            for number, (line, num_bytes) in enumerate(_lines(stream), 1):
                name = f"{file}:{number}"
                if num_bytes > LONGEST_ROW:
                    tally.drop_file(source.name, name, num_bytes, "too_long")
                    continue
                if not line.strip():
                    continue
                text = _field(line, source.text_field, f"{path}, line {number}")
                if _is_unicode(text):
                    yield Document(text, source.name, name, source.licence, "")
                else:
                    tally.drop_file(source.name, name, len(line), "not_utf8")


def _lines(stream: BufferedIOBase) -> Iterator[tuple[bytes, int]]:
    """Lines and how many bytes they have; of one above LONGEST_ROW, which memory might not hold, only the beginning."""
    while line := stream.readline(LONGEST_ROW + 1):
        num_bytes, part = len(line), line
        while len(part) > LONGEST_ROW and not part.endswith(b"\n"):
            part = stream.readline(LONGEST_ROW + 1)
            num_bytes += len(part)
        yield line, num_bytes


def _parquet(source: SourceSection, _: int, seed: int, tally: Tally) -> Iterator[Document]:
    from pyarrow import ArrowException  # a third of a second, and most sources are not parquet
    from pyarrow.parquet import ParquetFile

    for path, file in files_of(source, (".parquet",), seed, tally):
        try:
            with ParquetFile(path) as table:
                if source.text_field not in table.schema_arrow.names:
                    columns = ", ".join(table.schema_arrow.names)
                    raise DataError(f"{path}: no column {source.text_field!r}; it has {columns}")
                number = 0
                for batch in table.iter_batches(batch_size=256, columns=[source.text_field]):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        name = f"{file}:{number}"
                        if text is None:
                            tally.drop_file(source.name, name, 0, "empty_row")
                            continue
                        if not isinstance(text, str):
                            raise DataError(f"{path}, row {number}: column {source.text_field!r} is no text")
                        yield Document(text, source.name, name, source.licence, "")
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a readable parquet file: {error}") from None


def _field(line: bytes, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{where}: no text in the field {field!r}; text_field of the source names another")
    return text


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(path: str, name: str, source: str, max_bytes: int, tally: Tally) -> str | None:
    data = read_bytes(path, max_bytes + 1)
    reason = None
    if not data:
        reason = "empty_file"
    elif b"\0" in data:
        reason = "binary_file"
    elif len(data) > max_bytes:
        reason = "too_long"
    if reason is None:
        try:
            return data.decode()
        except UnicodeDecodeError:
            reason = "not_utf8"
    tally.drop_file(source, name, Path(path).stat().st_size, reason)
    return None


_READERS: dict[str, Callable[[SourceSection, int, int, Tally], Iterator[Document]]] = {
    "text": _text,
    "source": _source,
    "man": _man,
    "doc": _doc,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
