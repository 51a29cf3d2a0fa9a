"""Documents that hold a piece of an evaluation: they share a number of words in a row with one of its files.

After GPT-3 (arXiv 2005.14165, appendix C): 13 words, in lower case and without punctuation. A row with fewer words is
found as a whole when it has `_FEWEST` or more; below, it would match by chance.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapwater.config.corpus import DecontaminationSection
from tapwater.data.files import suffix_of, unpacked
from tapwater.data.words import Runs, hash_ngrams, hash_words
from tapwater.errors import DataError

_FEWEST = 8
_TABLE_BITS = 22  # a look-up that says no to almost everything in one memory access
_ROWS_AT_ONCE = 4096


class Decontamination:
    """The n-grams of the evaluation files: 8 bytes each, whatever is compared with them."""

    def __init__(self, config: DecontaminationSection) -> None:
        self._grams: dict[int, NDArray[np.uint64]] = {}
        found: dict[int, list[NDArray[np.uint64]]] = {}
        for file in config.files:
            for words in _words_of(Path(file)):
                for length, grams in _grams_of(words, config.ngram_words):
                    found.setdefault(length, []).append(grams)
        self._grams = {length: np.unique(np.concatenate(parts)) for length, parts in found.items()}
        self._tables = {length: _table(grams) for length, grams in self._grams.items()}

    def contaminated(self, words: Runs) -> NDArray[np.bool_]:
        """For each document, whether it shares an n-gram with an evaluation."""
        result = np.zeros(len(words.offsets) - 1, dtype=bool)
        for length, grams in self._grams.items():
            runs = hash_ngrams(words, length)
            likely = np.flatnonzero(self._tables[length][runs.hashes >> np.uint64(64 - _TABLE_BITS)])
            places = np.searchsorted(grams, runs.hashes[likely])
            hits = likely[grams[np.minimum(places, len(grams) - 1)] == runs.hashes[likely]]
            result[np.searchsorted(runs.offsets, hits, side="right") - 1] = True
        return result


def _grams_of(words: Runs, length: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    yield length, hash_ngrams(words, length).hashes
    sizes = np.diff(words.offsets)
    for size in range(_FEWEST, length):
        chosen = np.flatnonzero(sizes == size)
        if len(chosen):
            rows = words.offsets[chosen][:, None] + np.arange(size)
            short = Runs(words.hashes[rows].ravel(), np.arange(len(chosen) + 1) * size)
            yield size, hash_ngrams(short, size).hashes


def _table(grams: NDArray[np.uint64]) -> NDArray[np.bool_]:
    table = np.zeros(2**_TABLE_BITS, dtype=bool)
    table[grams >> np.uint64(64 - _TABLE_BITS)] = True
    return table


def _words_of(path: Path) -> Iterator[Runs]:
    rows: list[bytes] = []
    found = False
    for row in _rows(path):
        rows.append(row.encode())
        found = True
        if len(rows) == _ROWS_AT_ONCE:
            yield hash_words(rows)
            rows = []
    if not found:
        raise DataError(f"decontamination: {path} holds no text")
    if rows:
        yield hash_words(rows)


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
