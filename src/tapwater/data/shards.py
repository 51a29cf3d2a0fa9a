"""Files of tokens: documents one after another, an index of where they end beside them."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tapwater.data.manifest import ShardRecord, Split, SplitRecord, sha256_of
from tapwater.errors import DataError

SHARD_TOKENS = 2**28  # half a GiB of uint16


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest integer that holds every id: a shard is little-endian whatever the machine."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes the documents of one source and split; a context manager, `record` is whole after it.

    A shard ends with the document that fills it to `shard_tokens`.
    """

    def __init__(
        self, corpus: Path, split: Split, source: str, vocab_size: int, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self._corpus, self._split, self._source = corpus, split, source
        self._vocab_size, self._dtype, self._shard_tokens = vocab_size, token_dtype(vocab_size), shard_tokens
        self._records: list[ShardRecord] = []
        self._file: BinaryIO | None = None
        self._start()
        (corpus / split).mkdir(parents=True, exist_ok=True)

    def _start(self) -> None:
        self._hash = hashlib.sha256()
        self._index: list[tuple[int, int]] = []
        self._num_tokens = 0

    def add(self, tokens: NDArray[np.integer], num_bytes: int) -> None:
        """Append a document `BOS .. EOS` whose text has `num_bytes` bytes; DataError for ids outside the vocabulary."""
        if len(tokens) < 2:
            raise DataError(f"{self._source}: a document has BOS and EOS at least, got {len(tokens)} tokens")
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            raise DataError(f"{self._source}: token {tokens.max()} is outside the vocabulary of {self._vocab_size}")
        if self._file is None:
            self._file = (self._corpus / self._name).open("xb")
        data = tokens.astype(self._dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._num_tokens += len(tokens)
        self._index.append((self._num_tokens, num_bytes))
        if self._num_tokens >= self._shard_tokens:
            self._finish()

    @property
    def record(self) -> SplitRecord:
        """The shards that are finished."""
        return SplitRecord(tuple(self._records))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()

    @property
    def _name(self) -> str:
        return f"{self._split}/{self._source}-{len(self._records):05d}.bin"

    def _finish(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        name = self._name
        index = np.array(self._index, "<i8")
        record = ShardRecord(name, len(index), self._num_tokens, int(index[:, 1].sum()), self._hash.hexdigest(), "")
        np.save(self._corpus / record.index_file, index)
        checked = sha256_of(self._corpus / record.index_file)
        self._records.append(
            ShardRecord(
                name, record.num_documents, record.num_tokens, record.num_bytes, record.sha256, index_sha256=checked
            )
        )
        self._start()
