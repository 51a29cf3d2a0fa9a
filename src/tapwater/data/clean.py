"""Raw files to a clean stream of documents: read, normalise, filter, decontaminate, deduplicate.

Pass 1 streams all sources through everything that looks at one document, spools what is left and writes keys of it to
disk. Pass 2 finds duplicates among the keys. Then the spool is read as often as wanted, without them.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapwater.config.corpus import CorpusConfig, SourceSection
from tapwater.data.decontamination import Decontamination
from tapwater.data.document import Document
from tapwater.data.duplicates import EXACT, NEAR, UNIQUE, DuplicateIndex
from tapwater.data.filters import PROSE, SOURCE, judge
from tapwater.data.language import ProseLanguage
from tapwater.data.normalise import normalise
from tapwater.data.readers import read
from tapwater.data.spool import Spool, read_spool
from tapwater.data.tally import KEPT, Tally
from tapwater.data.words import hash_words
from tapwater.errors import DataError

Progress = Callable[[str, int, int], None]  # stage, and of it documents and bytes, or parts done and parts

_BATCH_BYTES = 2**20
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
    with _room(work):
        shutil.rmtree(work, ignore_errors=True)  # of a build that was stopped
        work.mkdir(parents=True)
        decontamination = Decontamination(config.decontamination)
        with Spool(_spool(work)) as spool, DuplicateIndex(work, config.duplicates) as index:
            for batch in _batches(config, tally, progress):
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


def _batches(config: CorpusConfig, tally: Tally, progress: Progress) -> Iterator[list[tuple[Document, bytes]]]:
    batch: list[tuple[Document, bytes]] = []
    waiting = num_documents = num_bytes = 0
    for document in _filtered(config, tally):
        utf8 = document.text.encode()
        batch.append((document, utf8))
        waiting += len(utf8)
        if waiting >= _BATCH_BYTES:
            yield batch
            num_documents, num_bytes = num_documents + len(batch), num_bytes + waiting
            progress("read", num_documents, num_bytes)
            batch, waiting = batch[:0], 0
    if batch:
        yield batch
        progress("read", num_documents + len(batch), num_bytes + waiting)


def _filtered(config: CorpusConfig, tally: Tally) -> Iterator[Document]:
    language_of = ProseLanguage()
    for source in config.sources:
        for raw in read(source, config.filters.max_chars, config.seed, tally):
            document = replace(raw, text=normalise(raw.text))
            rules = SOURCE if document.language else PROSE
            reason = judge(document.text, document.language, rules, config.filters)
            if reason is None and not document.language:
                document = replace(document, language=language_of(document.text))
                if source.languages and document.language not in source.languages:
                    reason = "language"
            if reason is None:
                yield document
            else:
                tally.drop(document, reason)


def _keep(
    batch: list[tuple[Document, bytes]],
    decontamination: Decontamination,
    spool: Spool,
    index: DuplicateIndex,
    tally: Tally,
) -> None:
    words = hash_words([utf8 for _, utf8 in batch])
    contaminated = decontamination.contaminated(words)
    for (document, utf8), is_contaminated in zip(batch, contaminated, strict=True):
        if is_contaminated:
            tally.drop(document, "contaminated")
        else:
            spool.write(document, utf8)
    index.add(
        [utf8 for (_, utf8), bad in zip(batch, contaminated, strict=True) if not bad], words.chosen(~contaminated)
    )


def _check_left(source: SourceSection, tally: Tally) -> None:
    reasons = tally.counts.get(source.name, {})
    if KEPT not in reasons:
        fates = ", ".join(f"{count.num_documents} {reason}" for reason, count in reasons.items())
        raise DataError(f"source {source.name}: nothing is left of it: {fates}")


@contextmanager
def _room(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(f"{work}: no space left; a build needs about the packed size of its text here") from None
        raise DataError(f"{work}: cannot write: {error.strerror or error}") from None


def _spool(work: Path) -> Path:
    return work / "documents.zst"
