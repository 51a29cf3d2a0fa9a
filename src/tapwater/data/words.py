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
_FIRST_BYTES = np.array([2 ** (8 * count) - 1 for count in range(9)], dtype=np.uint64)  # a mask of the first `count`
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
    joined = b"\0".join([b"", *texts, bytes(8 * (_PIECES + 1))]).translate(_LOWER)
    letters = np.frombuffer(joined, dtype=np.uint8)
    inside = letters != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1])  # starts and ends of words in turn, the first byte not counted
    if letters.max() >= _FIRST_IDEOGRAPHIC_BYTE:
        within = np.flatnonzero(inside[:-1] & (letters[1:] >= _FIRST_IDEOGRAPHIC_BYTE))  # one ends, one starts
        edges = np.insert(edges, np.searchsorted(edges, within).repeat(2), within.repeat(2))
    starts, lengths = edges[0::2], edges[1::2] - edges[0::2]
    eights: Hashes = np.ndarray(len(joined) - 8, dtype="<u8", buffer=joined, offset=1, strides=(1,))
    hashes = _mix(_first_eight(eights, starts, lengths) + lengths.view(np.uint64) * _ODD)
    longer = np.flatnonzero(lengths > 8)
    for piece in range(1, _PIECES):
        left = lengths[longer] - 8 * piece
        hashes[longer] = _mix(hashes[longer] * _ODD + _first_eight(eights, starts[longer] + 8 * piece, left))
        longer = longer[left > 8]
    ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
    return Runs(hashes, np.searchsorted(starts, ends).astype(np.int64))


def _first_eight(eights: Hashes, starts: Offsets, lengths: Offsets) -> Hashes:
    """The first 8 bytes of words, zeros after their ends; a word has a byte at least."""
    return eights[starts] & _FIRST_BYTES.take(lengths, mode="clip")


def hash_ngrams(words: Runs, length: int) -> Runs:
    """Every `length` words in a row that lie in one document; a document of fewer words has none."""
    count = max(len(words.hashes) - length + 1, 0)
    whole = np.ones(len(words.hashes), dtype=bool)
    for back in range(1, length):  # starts from which the words of a document do not suffice
        whole[np.maximum(words.offsets[1:][words.offsets[1:] > 0] - back, 0)] = False
    sizes = np.maximum(np.diff(words.offsets) - length + 1, 0)
    return Runs(_mix(_polynomials(words.hashes, length)[whole[:count]]), np.concatenate([[0], np.cumsum(sizes)]))


def _polynomials(values: Hashes, length: int) -> Hashes:
    """Of every `length` values in a row, across documents too: the sum of values[i] * _ODD^(length - 1 - i).

    A row of 2n is two of n, so 13 values take five steps (1, 2, 3, 6, 12, 13).
    """
    if length == 1 or len(values) < length:
        return values[: len(values) if length == 1 else 0]
    half = _polynomials(values, length // 2)
    count = len(values) - length + 1
    power = np.uint64(pow(int(_ODD), length // 2, 2**64))
    rows = half[: count + length % 2] * power
    rows += half[length // 2 :][: len(rows)]
    if length % 2:
        rows = rows[:count] * _ODD
        rows += values[length - 1 :]
    return rows


def hash_blocks(words: Runs, length: int) -> Hashes:
    """n-grams of the words 0 to `length`, `length` to twice that, and so on, whatever documents they are of."""
    rows = words.hashes[: len(words.hashes) // length * length].reshape(-1, length)
    grams = rows[:, 0].copy()
    for column in range(1, length):
        grams *= _ODD
        grams += rows[:, column]
    return _mix(grams)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output."""
    values = values ^ (values >> np.uint64(30))
    values *= _MIX_A
    values ^= values >> np.uint64(27)
    values *= _MIX_B
    values ^= values >> np.uint64(31)
    return values
