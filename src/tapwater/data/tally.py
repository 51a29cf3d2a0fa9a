"""What became of every document: counts and samples for each source and reason, for the manifest and the report."""

import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

from tapwater.data.document import Document

KEPT = "kept"
SAMPLES = 5
EXCERPT_CHARS = 600


@dataclass(frozen=True)
class Sample:
    """A document to look at: the start of its text."""

    name: str
    excerpt: str
    draw: int  # the samples are the documents with the smallest: a fair draw that needs no state


@dataclass
class Count:
    """Documents of one fate in one source."""

    num_documents: int = 0
    num_bytes: int = 0  # UTF-8 of their text, or the size of a file that has no text
    samples: list[Sample] = field(default_factory=list)

    def add(self, name: str, num_bytes: int, text: str) -> None:
        self.num_documents += 1
        self.num_bytes += num_bytes
        draw = zlib.crc32(name.encode())
        if len(self.samples) < SAMPLES or draw < self.samples[-1].draw:
            self.samples.append(Sample(name, text[:EXCERPT_CHARS], draw))
            self.samples.sort(key=lambda sample: (sample.draw, sample.name))
            del self.samples[SAMPLES:]


@dataclass
class Tally:
    """`counts[source][reason]`: KEPT, or why documents were dropped; bytes of what was kept by language and licence."""

    counts: dict[str, dict[str, Count]] = field(default_factory=dict)
    languages: dict[str, dict[str, int]] = field(default_factory=dict)
    licences: dict[str, dict[str, int]] = field(default_factory=dict)

    def keep(self, document: Document) -> None:
        num_bytes = document.num_bytes
        self._count(document.source, KEPT).add(document.name, num_bytes, document.text)
        for table, key in ((self.languages, document.language), (self.licences, document.licence)):
            row = table.setdefault(document.source, {})
            row[key] = row.get(key, 0) + num_bytes

    def drop(self, document: Document, reason: str) -> None:
        self._count(document.source, reason).add(document.name, document.num_bytes, document.text)

    def drop_file(self, source: str, name: str, num_bytes: int, reason: str) -> None:
        """A file that never became a document: empty, binary, not UTF-8."""
        self._count(source, reason).add(name, num_bytes, "")

    def total(self, reason: str = KEPT) -> tuple[int, int]:
        """Documents and bytes over all sources."""
        counts = [reasons[reason] for reasons in self.counts.values() if reason in reasons]
        return sum(count.num_documents for count in counts), sum(count.num_bytes for count in counts)

    def as_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)

    def _count(self, source: str, reason: str) -> Count:
        return self.counts.setdefault(source, {}).setdefault(reason, Count())
