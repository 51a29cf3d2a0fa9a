"""Words of many documents at once, as 64-bit hashes: what near-duplicates and contamination are found by.

A word is a run of letters, digits and '_', in lower case (ASCII only); a character from U+3000 up (Chinese, Japanese,
Korean) is a word of its own. Everything is numpy over the joined bytes, for 160,000 words of a megabyte are too many
for Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

_FIRST_IDEOGRAPHIC_BYTE = 0xE3  # leads the UTF-8 of U+3000 and all that follow
_LOWER = bytes(
    byte if byte >= 0x80 or chr(byte).isalnum() or byte == ord("_") else 0 for byte in bytes(range(256)).lower()
)
_PIECES = 8  # a word is known by its length and its first 64 bytes
_MASKS = np.array([(1 << (8 * length)) - 1 for length in range(9)], dtype=np.uint64)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX_A, _MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Runs:
    """Hashes of documents one after another: those of document n are `hashes[offsets[n] : offsets[n + 1]]`."""

    hashes: Hashes
    offsets: Offsets

    def chosen(self, documents: NDArray[np.bool_]) -> "Runs":
        """Those documents alone."""
        if documents.all():
            return self
        sizes = np.diff(self.offsets)
        return Runs(self.hashes[np.repeat(documents, sizes)], np.concatenate([[0], np.cumsum(sizes[documents])]))


def hash_words(texts: Sequence[bytes]) -> Runs:
    """The words of UTF-8 texts, in order."""
    joined = b"\0".join(texts).translate(_LOWER) + bytes(8 * (_PIECES + 1))
    letters = np.frombuffer(joined, dtype=np.uint8)
    inside = letters != 0
    begins = inside.copy()
    begins[1:] &= ~inside[:-1] | (letters[1:] >= _FIRST_IDEOGRAPHIC_BYTE)
    starts = np.flatnonzero(begins)
    closes = begins[1:] | ~inside[1:]
    closes &= inside[:-1]
    lengths = np.flatnonzero(closes) + 1 - starts
    eights: Hashes = np.ndarray(len(joined) - 7, dtype="<u8", buffer=joined, strides=(1,))
    hashes = _mix((eights[starts] & _MASKS[np.minimum(lengths, 8)]) + lengths.astype(np.uint64) * _ODD)
    for piece in range(1, _PIECES):
        longer = np.flatnonzero(lengths > 8 * piece)
        if not len(longer):
            break
        rest = eights[starts[longer] + 8 * piece] & _MASKS[np.minimum(lengths[longer] - 8 * piece, 8)]
        hashes[longer] = _mix(hashes[longer] * _ODD + rest)
    ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
    return Runs(hashes, np.searchsorted(starts, ends).astype(np.int64))


def hash_ngrams(words: Runs, length: int) -> Runs:
    """Every `length` words in a row that lie in one document; a document of fewer words has none."""
    count = max(len(words.hashes) - length + 1, 0)
    grams = words.hashes[:count].copy()
    for step in range(1, length):
        grams *= _ODD
        grams += words.hashes[step : step + count]
    whole = np.ones(len(words.hashes), dtype=bool)
    for back in range(1, length):  # starts from which the words of a document do not suffice
        whole[np.maximum(words.offsets[1:][words.offsets[1:] > 0] - back, 0)] = False
    kept = np.concatenate([[0], np.cumsum(whole, dtype=np.int64)])
    return Runs(_mix(grams[whole[:count]]), kept[words.offsets])


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output."""
    values = values ^ (values >> np.uint64(30))
    values *= _MIX_A
    values ^= values >> np.uint64(27)
    values *= _MIX_B
    values ^= values >> np.uint64(31)
    return values
