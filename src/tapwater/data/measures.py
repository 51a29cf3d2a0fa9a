"""What filters look at, computed from the bytes of many documents at once.

Of what is not ASCII, all but punctuation and signs (U+0080-00BF, U+2000-2FFF) counts as letters.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LETTERS = np.array([chr(byte).isalpha() if byte < 0x80 else 0xC3 <= byte != 0xE2 for byte in range(256)])
_CLASSES = np.stack(
    [_LETTERS, *(np.isin(np.arange(256), list(each)) for each in (b"0123456789", b" \n\t", b"#"))], axis=1
).astype(np.int64)
_TAIL = 8  # bytes
_DOCUMENT_BITS = 20  # a batch has fewer documents
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Measures(NamedTuple):
    """What filters look at, computed once a document."""

    text: str
    utf8: bytes
    language: str
    num_chars: int
    num_lines: int
    num_filled_lines: int
    fewest_distinct_lines: int  # of those that are filled; `num_distinct_lines` counts them
    longest_line_bytes: int
    num_letters: int
    num_digits: int
    num_blanks: int
    num_hashes: int  # '#'
    entropy_bits: float  # of a byte

    def num_distinct_lines(self) -> int:
        """Of those that are filled."""
        return len(set(self.text.split("\n")) - {""})

    def longest_line(self) -> int:
        """In characters."""
        return max(map(len, self.text.split("\n")))


def measure(texts: Sequence[str], utf8: Sequence[bytes], languages: Sequence[str]) -> list[Measures]:
    """Of texts that are normalised and hold a character at least: together, for each is short to numpy."""
    sizes = np.array([len(each) for each in utf8])
    counts = np.concatenate([np.bincount(np.frombuffer(each, dtype=np.uint8), minlength=256) for each in utf8])
    counts = counts.reshape(-1, 256)
    bits = np.log2(sizes) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1) / sizes
    columns = (_sizes_of_lines(utf8, counts[:, ord("\n")] + 1), counts @ _CLASSES, bits[:, None])
    rows = [values for column in columns for values in column.T.tolist()]
    return list(map(Measures._make, zip(texts, utf8, languages, map(len, texts), *rows, strict=True)))


def _sizes_of_lines(utf8: Sequence[bytes], num_lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each text the numbers of lines, of filled ones and the fewest that are distinct; bytes of the longest.

    Lines count as distinct by their length and last bytes: cheap, and never too many.
    """
    joined = b"\0" * _TAIL + b"\n".join(utf8) + b"\n"
    ends = np.flatnonzero(np.frombuffer(joined, dtype=np.uint8) == ord("\n"))
    lengths = np.diff(ends, prepend=_TAIL - 1) - 1
    first = np.cumsum(num_lines) - num_lines
    longest = np.maximum.reduceat(lengths, first)
    filled = lengths > 0
    num_filled = np.add.reduceat(filled, first, dtype=np.int64)
    ends, lengths = ends[filled], lengths[filled]
    tails = np.ndarray(len(joined) - _TAIL + 1, dtype="<u8", buffer=joined, strides=(1,))[ends - _TAIL]
    tails >>= (8 * (_TAIL - np.minimum(lengths, _TAIL))).astype(np.uint64)
    keys = (tails + lengths.astype(np.uint64)) * _ODD >> np.uint64(_DOCUMENT_BITS)
    keys |= np.arange(len(utf8), dtype=np.uint64).repeat(num_filled) << np.uint64(64 - _DOCUMENT_BITS)
    keys.sort()
    new = keys[np.flatnonzero(np.diff(keys, prepend=~keys[:1]))] >> np.uint64(64 - _DOCUMENT_BITS)
    distinct = np.bincount(new.astype(np.int64), minlength=len(utf8))
    return np.stack([num_lines, num_filled, distinct, longest], axis=1)
