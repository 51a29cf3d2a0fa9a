"""Shards: what was written is read, and damage is named."""

from pathlib import Path

import numpy as np
import pytest

from tapwater.data.corpus import Corpus
from tapwater.data.shards import ShardWriter
from tapwater.errors import DataError
from tiny_corpus import BOS, EOS, random_documents, write_corpus


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, np.uint16), (65536, np.uint16), (70000, np.uint32)])
def test_documents_come_back_as_written(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    documents = [*random_documents(40, 30, 1, vocab_size), [vocab_size - 1], []]
    corpus = write_corpus(tmp_path / "c", {"a": documents, "b": [[5]]}, {"a": [[7, 8]]}, vocab_size, 200)
    assert len(corpus.manifest.sources[0].train.shards) > 3
    for number, tokens in enumerate(documents):
        found = corpus.document("train", "a", number)
        assert found.tolist() == [BOS, *tokens, EOS] and found.dtype == dtype
        assert corpus.document_tokens("train", "a", number) == len(tokens) + 2
        assert corpus.document_bytes("train", "a", number) == len(tokens)
    assert corpus.document("heldout", "a", 0).tolist() == [BOS, 7, 8, EOS]
    assert (corpus.num_documents("train", "a"), corpus.num_documents("heldout", "b")) == (42, 0)
    assert corpus.num_tokens("train", "a") == sum(len(each) + 2 for each in documents)
    assert corpus.num_bytes("train", "a") == sum(len(each) for each in documents)
    corpus.verify()
    with pytest.raises(DataError, match="documents 0 to 41, not 42"):
        corpus.document("train", "a", 42)
    with pytest.raises(DataError, match="no source 'x'; there are a, b"):
        corpus.num_tokens("train", "x")


def test_a_truncated_shard_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_corpus(path, {"a": [[5, 6, 7]]})
    shard = path / "train/a-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"a-00000\.bin: has 8 bytes and should have 10"):
        Corpus.open(path)
    shard.unlink()
    with pytest.raises(DataError, match=r"a-00000\.bin: is missing"):
        Corpus.open(path)


def test_a_damaged_index_and_a_changed_token_are_found(tmp_path: Path) -> None:
    path = tmp_path / "c"
    corpus = write_corpus(path, {"a": [[5, 6, 7]]})
    shard, index = path / "train/a-00000.bin", path / "train/a-00000.idx.npy"
    shard.write_bytes(b"\x09" + shard.read_bytes()[1:])
    Corpus.open(path)
    with pytest.raises(DataError, match=r"a-00000\.bin: is damaged"):
        corpus.verify()
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(DataError, match="is no whole index of 1 documents"):
        Corpus.open(path)


def test_a_directory_without_a_manifest_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished corpus"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "source": []}')
    with pytest.raises(DataError, match="unknown field 'source'; did you mean 'sources'"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 9}')
    with pytest.raises(DataError, match="format 9, this version reads 1"):
        Corpus.open(tmp_path)


def test_fingerprints_are_of_what_is_in_it(tmp_path: Path) -> None:
    first, again, other = (
        write_corpus(tmp_path / name, {"a": [[token]]}) for name, token in (("x", 5), ("y", 5), ("z", 6))
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_ids_outside_the_vocabulary_are_not_written(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", "a", 10) as writer, pytest.raises(DataError, match="token 10 is outside"):
        writer.add(np.array([0, 10]), 1)
    assert writer.record.shards == ()
