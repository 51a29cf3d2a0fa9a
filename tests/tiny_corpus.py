"""A corpus written from token ids, without text or tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tapwater.data.corpus import Corpus
from tapwater.data.manifest import FORMAT, Manifest, SourceRecord, SplitRecord, write_manifest
from tapwater.data.shards import ShardWriter, token_dtype

BOS, EOS = 0, 1
Documents = Sequence[Sequence[int]]  # each without BOS and EOS


def write_corpus(
    path: Path,
    train: Mapping[str, Documents],
    heldout: Mapping[str, Documents] | None = None,
    vocab_size: int = 1000,
    shard_tokens: int = 2**28,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> Corpus:
    """Documents of each source as a corpus; a document counts as many bytes as tokens, or as `sizes` says of all."""
    path.mkdir()
    sources = []
    for name, documents in train.items():
        records: list[SplitRecord] = []
        given = iter((sizes or {}).get(name, []))
        for split, part in (("train", documents), ("heldout", (heldout or {}).get(name, []))):
            with ShardWriter(path, split, name, vocab_size, shard_tokens) as writer:
                for tokens in part:
                    writer.add(np.array([BOS, *tokens, EOS]), next(given, len(tokens)))
            records.append(writer.record)
        sources.append(SourceRecord(name, *records))
    dtype = "uint16" if token_dtype(vocab_size).itemsize == 2 else "uint32"
    write_manifest(path, Manifest(FORMAT, "0", dtype, vocab_size, BOS, EOS, {}, tuple(sources)))
    return Corpus.open(path)


def random_documents(count: int, mean: int, seed: int, vocab_size: int = 1000) -> list[list[int]]:
    """Documents of geometric lengths, as texts have them: many short, a few long."""
    generator = np.random.default_rng(seed)
    lengths = generator.geometric(1 / mean, count)
    return [generator.integers(2, vocab_size, length).tolist() for length in lengths]
