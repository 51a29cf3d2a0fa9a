"""A built corpus: token shards that are mapped, never read whole."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapwater.data.manifest import SPLITS, Manifest, ShardRecord, Split, SplitRecord, read_manifest, sha256_of
from tapwater.errors import DataError

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class _Shard:
    tokens: NDArray[np.unsignedinteger]  # [num_tokens]
    index: NDArray[np.int64]  # [num_documents, 2]: token offset of the end, bytes of the text


class Corpus:
    """The shards of a directory that `tapwater data build` wrote. Make one with `open`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.sources = tuple(each.name for each in manifest.sources)
        self._shards: dict[tuple[Split, str], list[_Shard]] = {}
        self._firsts: dict[tuple[Split, str], list[int]] = {}  # number of the first document of each shard
        for record in manifest.sources:
            for split in SPLITS:
                shards = record.split(split).shards
                self._shards[split, record.name] = [_open_shard(path, manifest.dtype, each) for each in shards]
                self._firsts[split, record.name] = list(accumulate((each.num_documents for each in shards), initial=0))

    @classmethod
    def open(cls, path: Path) -> "Corpus":
        """Map the shards of a corpus.

        DataError when the directory has no manifest, or a file is missing or not as long as the manifest says (naming
        it and both lengths). What the files hold is only looked at by `verify`.
        """
        return cls(path, read_manifest(path))

    @property
    def tokenizer_directory(self) -> Path:
        return self.path / "tokenizer"

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def num_documents(self, split: Split, source: str) -> int:
        return self._record(split, source).num_documents

    def num_tokens(self, split: Split, source: str) -> int:
        """BOS and EOS of every document among them."""
        return self._record(split, source).num_tokens

    def num_bytes(self, split: Split, source: str) -> int:
        """UTF-8 bytes of the texts."""
        return self._record(split, source).num_bytes

    def document(self, split: Split, source: str, number: int) -> NDArray[np.unsignedinteger]:
        """The tokens of a document, BOS and EOS among them: a view of the file."""
        shard, row = self._find(split, source, number)
        start = 0 if row == 0 else int(shard.index[row - 1, 0])
        return shard.tokens[start : int(shard.index[row, 0])]

    def document_tokens(self, split: Split, source: str, number: int) -> int:
        """How many tokens a document has; its tokens are not read."""
        shard, row = self._find(split, source, number)
        return int(shard.index[row, 0]) - (0 if row == 0 else int(shard.index[row - 1, 0]))

    def document_bytes(self, split: Split, source: str, number: int) -> int:
        """UTF-8 bytes of a document's text."""
        shard, row = self._find(split, source, number)
        return int(shard.index[row, 1])

    def verify(self, progress: Progress = lambda done, total: None) -> None:
        """Hash every file again, reporting bytes; DataError naming the first that is not what was built."""
        expected = [(f"tokenizer/{name}", sha256) for name, sha256 in self.manifest.tokenizer.items()]
        for record in self.manifest.sources:
            for shard in (*record.train.shards, *record.heldout.shards):
                expected += [(shard.file, shard.sha256), (shard.index_file, shard.index_sha256)]
        sizes = [_size(self.path / name) for name, _ in expected]
        for done, (name, sha256) in enumerate(expected):
            progress(sum(sizes[:done]), sum(sizes))
            found = sha256_of(self.path / name)
            if found != sha256:
                raise DataError(
                    f"{self.path / name}: is damaged, its sha256 is {found} and was {sha256}; build the corpus anew"
                )
        progress(sum(sizes), sum(sizes))

    def _record(self, split: Split, source: str) -> SplitRecord:
        return self.manifest.sources[self.source_index(source)].split(split)

    def source_index(self, source: str) -> int:
        """The place of a source in `sources`; DataError naming those there are."""
        if source not in self.sources:
            raise DataError(f"{self.path}: no source {source!r}; there are {', '.join(self.sources) or 'none'}")
        return self.sources.index(source)

    def _find(self, split: Split, source: str, number: int) -> tuple[_Shard, int]:
        if not 0 <= number < self.num_documents(split, source):
            raise DataError(
                f"{self.path}: {split} of {source} has documents 0 to {self.num_documents(split, source) - 1}, "
                f"not {number}"
            )
        firsts = self._firsts[split, source]
        place = bisect_right(firsts, number) - 1
        return self._shards[split, source][place], number - firsts[place]


def _open_shard(corpus: Path, dtype: str, record: ShardRecord) -> _Shard:
    kind = np.dtype(dtype).newbyteorder("<")
    path, index_path = corpus / record.file, corpus / record.index_file
    if _size(path) != record.num_tokens * kind.itemsize:
        raise DataError(
            f"{path}: has {_size(path):,} bytes and should have {record.num_tokens * kind.itemsize:,}; "
            "copy it again or build the corpus anew"
        )
    _size(index_path)
    try:
        index = np.load(index_path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{index_path}: is no whole index of {record.num_documents} documents: {error}") from None
    if index.shape != (record.num_documents, 2) or index.dtype != np.int64 or index[-1, 0] != record.num_tokens:
        raise DataError(f"{index_path}: is not the index of {record.num_documents} documents, but {index.shape}")
    return _Shard(np.memmap(path, kind, "r"), index)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; copy it again or build the corpus anew") from None
