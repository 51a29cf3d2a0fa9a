"""A document: the unit that is read, filtered, counted and never cut before packing."""

from typing import NamedTuple


class Document(NamedTuple):
    """Text and where it is from; `source` is a name of the configuration, `name` is unique in it."""

    text: str
    source: str
    name: str
    licence: str  # SPDX where it is known, "unknown" where nobody said
    language: str  # ISO 639-1 of prose ("en"), the suffix of program text (".py"), "" before it is known

    @property
    def num_bytes(self) -> int:
        """Of its UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())
