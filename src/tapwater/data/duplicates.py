"""Which documents repeat an earlier one, exactly or nearly, found on disk: memory does not grow with the text.

While documents stream by, keys of each go to partition files: a 128-bit hash of its text and, for near-duplicates, one
hash for each band of its MinHash signature (Broder 1997; bands as in Leskovec et al., Mining of Massive Datasets,
section 3.4). Then one partition at a time is sorted; equal keys stand together. Texts with one hash are the same. Of
signatures with an equal band the similarity is estimated by their equal entries. The first document always stays; a
document that resembles any earlier one goes, even when that one went itself, so the result depends on nothing but the
order of the documents.
"""

from array import array
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # pyrefly: ignore[missing-module-attribute] - it is Rust and says no types

from tapwater.config.corpus import DuplicatesSection
from tapwater.data.words import Runs, hash_ngrams

UNIQUE, EXACT, NEAR = 0, 1, 2
_PARTITIONS = 64  # a partition of 100 million documents in 16 bands is 600 MB
_KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u8")])
_WAITING = 2**16  # keys in memory before they are written: 1.5 MB
_SEED = 42  # of the permutations: nothing that is kept depends on them
_NEIGHBOURS = (
    32  # earlier documents of one band hash that a document is compared with, nearest first, besides the first
)
_AT_ONCE = 2**14  # pairs compared in one go

Keys = NDArray[np.void]


class Partitions:
    """Files of keys; equal keys are in the same file."""

    def __init__(self, directory: Path, name: str) -> None:
        self._paths = [directory / f"{name}-{number:02d}" for number in range(_PARTITIONS)]
        self._files = [path.open("wb") for path in self._paths]
        self._waiting: list[Keys] = []
        self._num_waiting = 0

    def add(self, keys: Keys) -> None:
        """Keys of later documents than those before."""
        self._waiting.append(keys)
        self._num_waiting += len(keys)
        if self._num_waiting >= _WAITING:
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        for file in self._files:
            file.close()

    def _write(self) -> None:
        keys = np.concatenate(self._waiting)
        self._waiting.clear()
        self._num_waiting = 0
        chosen = (keys["high"] >> np.uint64(58)).astype(np.uint8)
        keys = keys[np.argsort(chosen, kind="stable")]
        ends = np.cumsum(np.bincount(chosen, minlength=_PARTITIONS))
        for file, part in zip(self._files, np.split(keys, ends[:-1]), strict=True):
            file.write(part.tobytes())

    def sorted(self, number: int) -> tuple[Keys, NDArray[np.bool_]]:
        """The keys of one file, equal ones in the order of documents; and whether each equals the one before."""
        keys = np.fromfile(self._paths[number], dtype=_KEY)
        keys = keys[np.lexsort((keys["low"], keys["high"]))]  # stable, and documents were added in order
        same = np.zeros(len(keys), dtype=bool)
        same[1:] = (keys["high"][1:] == keys["high"][:-1]) & (keys["low"][1:] == keys["low"][:-1])
        return keys, same


class DuplicateIndex:
    """What is written about documents while they stream by: `add` for all of them, in order, then `fates`."""

    def __init__(self, directory: Path, config: DuplicatesSection) -> None:
        self._config = config
        self._num_documents = 0
        self._texts = Partitions(directory, "text")
        self._bands = Partitions(directory, "band")
        self._signature_path = directory / "signatures"
        self._signatures = self._signature_path.open("wb")

    def __enter__(self) -> "DuplicateIndex":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._close()

    def add(self, texts: Sequence[bytes], words: Runs) -> None:
        """The next documents, normalised UTF-8, and their words (`hash_words`)."""
        numbers = np.arange(self._num_documents, self._num_documents + len(texts), dtype=np.uint64)
        self._num_documents += len(texts)
        hashes = np.frombuffer(b"".join([sha256(text).digest()[:16] for text in texts]), dtype="<u8")
        self._texts.add(_keys(hashes[0::2], hashes[1::2], numbers))
        if self._config.near == "none":
            return
        shingles = hash_ngrams(words, self._config.shingle_words)
        signed = signatures(shingles, self._config.num_permutations)
        self._signatures.write(signed.tobytes())
        has_shingles = np.diff(shingles.offsets) > 0  # all signatures of nothing are alike, their documents are not
        bands = self._config.bands
        hashes = _band_hashes(signed[has_shingles], bands)
        band = np.tile(np.arange(bands, dtype=np.uint64), len(hashes) // bands)
        self._bands.add(_keys(hashes, band, numbers[has_shingles].repeat(bands)))

    def fates(self, progress: Callable[[int, int], None]) -> NDArray[np.uint8]:
        """UNIQUE, EXACT or NEAR for each document, in order; `progress(done, of)` after each partition."""
        self._close()
        fates = np.full(self._num_documents, UNIQUE, dtype=np.uint8)
        done, of = 0, _PARTITIONS * (1 if self._config.near == "none" else 2)
        for number in range(_PARTITIONS):
            keys, same = self._texts.sorted(number)
            fates[keys["document"][same]] = EXACT
            progress(done := done + 1, of)
        if self._config.near == "none" or self._num_documents == 0:
            return fates
        signed = np.memmap(self._signature_path, "<u4", "r", shape=(self._num_documents, self._config.num_permutations))
        for number in range(_PARTITIONS):
            keys, same = self._bands.sorted(number)
            _mark_near(keys["document"].astype(np.int64), same, signed, self._config.threshold, fates)
            progress(done := done + 1, of)
        return fates

    def _close(self) -> None:
        self._texts.close()
        self._bands.close()
        self._signatures.close()


def signatures(shingles: Runs, num_permutations: int) -> NDArray[np.uint32]:
    """[documents, permutations]: MinHash of each set of shingles; two agree in a share that is near their Jaccard."""
    offsets = shingles.offsets.astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes, offsets, num_permutations, _SEED)
    entries = array("I")  # numpy takes twice as long over lists
    for row in matrix.to_rows():
        entries.fromlist(row)
    return np.frombuffer(entries, dtype=np.uint32).reshape(len(offsets) - 1, num_permutations)


def _keys(high: NDArray[np.uint64], low: NDArray[np.uint64], documents: NDArray[np.uint64]) -> Keys:
    keys = np.empty(len(documents), dtype=_KEY)
    keys["high"], keys["low"], keys["document"] = high, low, documents
    return keys


def _band_hashes(signed: NDArray[np.uint32], bands: int) -> NDArray[np.uint64]:
    """One hash for each document and band, document by document: the n-gram of the band's entries."""
    rows = signed.shape[1] // bands
    return hash_ngrams(Runs(signed.astype(np.uint64).ravel(), np.arange(len(signed) * bands + 1) * rows), rows).hashes


def _mark_near(
    documents: NDArray[np.int64],
    same: NDArray[np.bool_],
    signed: NDArray[np.uint32],
    threshold: float,
    fates: NDArray[np.uint8],
) -> None:
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))  # of the run of equal keys each is in
    rank = np.arange(len(same)) - starts
    _compare(documents[rank > 0], documents[starts[rank > 0]], signed, threshold, fates)
    for back in range(1, min(int(rank.max(initial=0)), _NEIGHBOURS + 1)):
        later = np.flatnonzero(rank > back)  # at rank == back stands the pair with the first
        _compare(documents[later], documents[later - back], signed, threshold, fates)


def _compare(
    later: NDArray[np.int64],
    earlier: NDArray[np.int64],
    signed: NDArray[np.uint32],
    threshold: float,
    fates: NDArray[np.uint8],
) -> None:
    for start in range(0, len(later), _AT_ONCE):
        late, early = later[start : start + _AT_ONCE], earlier[start : start + _AT_ONCE]
        unknown = fates[late] == UNIQUE
        late, early = late[unknown], early[unknown]
        alike = (signed[late] == signed[early]).mean(axis=1) >= threshold
        fates[late[alike]] = NEAR
