"""Raw files to a clean stream of documents: read, normalise, filter, decontaminate, deduplicate.

Pass 1 streams all sources through everything that looks at one document, spools what is left and writes keys of it to
disk. Pass 2 finds duplicates among the keys. Then the spool is read as often as wanted, without them.
"""

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapwater.config.corpus import CorpusConfig, FilterSection, SourceSection
from tapwater.data.decontamination import Decontamination
from tapwater.data.document import Document
from tapwater.data.duplicates import EXACT, NEAR, UNIQUE, DuplicateIndex
from tapwater.data.files import check_paths
from tapwater.data.filters import judge
from tapwater.data.language import ProseLanguage
from tapwater.data.normalise import normalise_all
from tapwater.data.readers import read
from tapwater.data.spool import Spool, read_spool
from tapwater.data.tally import KEPT, Tally
from tapwater.data.words import hash_words
from tapwater.errors import DataError

Progress = Callable[[str, int, int], None]  # stage, and of it documents and bytes, or parts done and parts

_BATCH_CHARS, _BATCH_DOCUMENTS = 2**20, 2**14
_REASONS = {EXACT: "exact_duplicate", NEAR: "near_duplicate"}


class Cleaned:
    """The documents that stay, in the order of the sources; may be iterated more than once, until `remove`."""

    def __init__(self, work: Path, fates: NDArray[np.uint8], tally: Tally) -> None:
        self.tally = tally
        self._work = work
        self._fates = fates

    def __iter__(self) -> Iterator[Document]:
        for document, fate in zip(read_spool(_spool(self._work)), self._fates, strict=True):
            if fate == UNIQUE:
                yield document

    def remove(self) -> None:
        """Delete the work files."""
        shutil.rmtree(self._work)


def clean(config: CorpusConfig, progress: Progress) -> Cleaned:
    """Everything up to documents that are worth training on; work files are in `<directory>.partial/work`.

    Paths are resolved already: no placeholder, no '~'. Raises DataError for sources that are missing, damaged or
    without a document, for a full disk, and when nothing is left of a source.
    """
    work = Path(f"{config.directory}.partial") / "work"
    tally = Tally()
    with room(work):
        shutil.rmtree(work, ignore_errors=True)  # of a build that was stopped
        work.mkdir(parents=True)
        for source in config.sources:  # what is wrong of the last is said before hours go into the first
            check_paths(source)
        decontamination = Decontamination(config.decontamination)
        with Spool(_spool(work)) as spool, DuplicateIndex(work, config.duplicates) as index:
            for batch in _filtered(config, tally, progress):
                _keep(batch, decontamination, spool, index, tally)
        fates = index.fates(lambda done, of: progress("duplicates", done, of))
        for document, fate in zip(read_spool(_spool(work)), fates, strict=True):
            if fate == UNIQUE:
                tally.keep(document)
            else:
                tally.drop(document, _REASONS[int(fate)])
    for source in config.sources:
        _check_left(source, tally)
    return Cleaned(work, fates, tally)


def _filtered(config: CorpusConfig, tally: Tally, progress: Progress) -> Iterator[list[tuple[Document, bytes]]]:
    """Documents in batches, for what is looked at in bytes is looked at by numpy, in many documents at once."""
    language_of = ProseLanguage()
    num_documents = num_bytes = 0
    for source in config.sources:
        for raw in _batches(read(source, config.filters.max_chars, config.seed, tally)):
            batch = _judged(raw, source, config.filters, language_of, tally)
            if not batch:
                continue
            yield batch
            num_documents, num_bytes = num_documents + len(batch), num_bytes + sum(len(utf8) for _, utf8 in batch)
            progress("read", num_documents, num_bytes)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += len(document.text)
        if num_chars >= _BATCH_CHARS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, num_chars = batch[:0], 0
    if batch:
        yield batch


def _judged(
    raw: list[Document], source: SourceSection, limits: FilterSection, language_of: ProseLanguage, tally: Tally
) -> list[tuple[Document, bytes]]:
    """Those that stay, normalised."""
    texts, utf8 = normalise_all([each.text for each in raw])
    reasons = judge(texts, utf8, [each.language for each in raw], limits)
    kept: list[tuple[Document, bytes]] = []
    for document, text, encoded, reason in zip(raw, texts, utf8, reasons, strict=True):
        language = document.language
        if reason is None and not language:
            language = language_of(text)
            if source.languages and language not in source.languages:
                reason = "language"
        judged = Document(text, document.source, document.name, document.licence, language)
        if reason is None:
            kept.append((judged, encoded))
        else:
            tally.drop(judged, reason)
    return kept


def _keep(
    batch: list[tuple[Document, bytes]],
    decontamination: Decontamination,
    spool: Spool,
    index: DuplicateIndex,
    tally: Tally,
) -> None:
    words = hash_words([utf8 for _, utf8 in batch])
    contaminated = decontamination.contaminated(words)
    left: list[bytes] = []
    for (document, utf8), is_contaminated in zip(batch, contaminated.tolist(), strict=True):
        if is_contaminated:
            tally.drop(document, "contaminated")
        else:
            spool.write(document, utf8)
            left.append(utf8)
    index.add(left, words.chosen(~contaminated))


def _check_left(source: SourceSection, tally: Tally) -> None:
    reasons = tally.counts.get(source.name, {})
    if KEPT not in reasons:
        fates = ", ".join(f"{count.num_documents} {reason}" for reason, count in reasons.items())
        raise DataError(f"source {source.name}: nothing is left of it: {fates}")


@contextmanager
def room(work: Path) -> Iterator[None]:
    """What the system says of files while a corpus is built is a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(f"{work}: no space left; a build needs about the packed size of its text here") from None
        raise DataError(f"{work}: cannot write: {error.strerror or error}") from None


def _spool(work: Path) -> Path:
    return work / "documents.zst"
