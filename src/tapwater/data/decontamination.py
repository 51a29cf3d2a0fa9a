"""Documents that hold a piece of an evaluation: they share a number of words in a row with one of its files.

After GPT-3 (arXiv 2005.14165, appendix C): 13 words, in lower case and without punctuation. A row with fewer words is
found as a whole when it has `_FEWEST` or more; below, it would match by chance.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapwater.config.corpus import DecontaminationSection
from tapwater.data.files import suffix_of, unpacked
from tapwater.data.normalise import normalise
from tapwater.data.words import Runs, hash_blocks, hash_ngrams, hash_words
from tapwater.errors import DataError

_FEWEST = 8
_TABLE_BITS = 22  # 512 KB, for a processor's cache: it says no to almost everything
_ROWS_AT_ONCE = 4096


class Decontamination:
    """The n-grams of the evaluation files: 8 bytes each and as much for their parts, whatever is compared with them.

    n words in a row hold a whole block of (n + 1) / 2 words, wherever blocks start. So the blocks of a document are
    looked up first, and n-grams are made of those documents alone that share a block with an evaluation.
    """

    def __init__(self, config: DecontaminationSection) -> None:
        grams: dict[int, list[NDArray[np.uint64]]] = {}
        blocks: dict[int, list[NDArray[np.uint64]]] = {}
        for file in config.files:
            for words in _words_of(Path(file), min(_FEWEST, config.ngram_words)):
                for length, rows in _rows_of(words, config.ngram_words):
                    grams.setdefault(length, []).append(hash_ngrams(rows, length).hashes)
                    blocks.setdefault(length, []).append(hash_ngrams(rows, _block(length)).hashes)
        self._grams = {length: _Known(np.sort(np.concatenate(parts))) for length, parts in grams.items()}
        self._blocks = {length: _Known(np.sort(np.concatenate(parts))) for length, parts in blocks.items()}

    def contaminated(self, words: Runs) -> NDArray[np.bool_]:
        """For each document, whether it shares an n-gram with an evaluation."""
        result = np.zeros(len(words.offsets) - 1, dtype=bool)
        for length, grams in self._grams.items():
            starts = self._blocks[length].found(hash_blocks(words, _block(length))) * _block(length)
            suspected = np.zeros_like(result)
            # A block may start in one document and end in the next; an n-gram does not, so one of its blocks does not.
            suspected[np.searchsorted(words.offsets, starts, side="right") - 1] = True
            runs = hash_ngrams(words.chosen(suspected), length)
            hits = np.searchsorted(runs.offsets, grams.found(runs.hashes), side="right") - 1
            result[np.flatnonzero(suspected)[hits]] = True
        return result


class _Known:
    """Sorted hashes, and a table of bits that says no to almost everything else."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes = hashes
        bits = np.zeros(2**_TABLE_BITS, dtype=np.uint8)
        bits[hashes >> np.uint64(64 - _TABLE_BITS)] = 1
        self._table = np.packbits(bits)

    def found(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Which of `hashes` are known."""
        bits = hashes >> np.uint64(64 - _TABLE_BITS)
        likely = np.flatnonzero(self._table[bits >> np.uint64(3)] << (bits & np.uint64(7)).astype(np.uint8) & 0x80)
        places = np.minimum(np.searchsorted(self._hashes, hashes[likely]), len(self._hashes) - 1)
        return likely[self._hashes[places] == hashes[likely]]


def _block(length: int) -> int:
    return (length + 1) // 2


def _rows_of(words: Runs, length: int) -> Iterator[tuple[int, Runs]]:
    """Texts with the length their n-grams have."""
    yield length, words
    sizes = np.diff(words.offsets)
    for size in range(_FEWEST, length):
        if (sizes == size).any():
            yield size, words.chosen(sizes == size)


def _words_of(path: Path, fewest: int) -> Iterator[Runs]:
    most = -1
    rows = _rows(path)
    while batch := [_spelt_as_documents(row) for row in islice(rows, _ROWS_AT_ONCE)]:
        words = hash_words(batch)
        most = max(most, int(np.diff(words.offsets).max()))
        yield words
    if most < 0:
        raise DataError(f"decontamination: {path} holds no text")
    if most < fewest:
        raise DataError(
            f"decontamination: no text of {path} has {fewest} words, too few to be recognised; leave it out"
        )


def _spelt_as_documents(row: str) -> bytes:
    """JSON can spell half of a surrogate pair, which no document holds: it ends a word."""
    return normalise(row.encode(errors="replace").decode()).encode()


def _rows(path: Path) -> Iterator[str]:
    if suffix_of(path.name) not in (".jsonl", ".ndjson"):
        with unpacked(path) as stream:
            try:
                yield stream.read().decode()
            except UnicodeDecodeError as error:
                raise DataError(f"decontamination: {path} is not UTF-8: {error}") from None
        return
    with unpacked(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield from _strings([json.loads(line)] if line.strip() else [])
            except (ValueError, RecursionError) as error:
                raise DataError(f"decontamination: {path}, line {number}: not JSON: {error}") from None


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings(value.values())
        elif isinstance(value, list):
            yield from _strings(value)
