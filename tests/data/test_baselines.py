"""Baselines are codes one could decode: in the right order, and no better than the text allows."""

import math
from pathlib import Path

import numpy as np
import pytest

from tapwater.data.baselines import baselines, read_baselines, write_baselines
from tapwater.data.corpus import Corpus
from tapwater.data.encode import Encoder, ToEncode
from tapwater.data.tokenizer_training import train_tokenizer
from tapwater.errors import DataError
from tiny_corpus import write_corpus

WORDS = ["the", "river", "of", "time", "runs", "under", "every", "bridge", "and", "nobody", "counts", "its", "water"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, 120)) + "\n" for _ in range(120)]
    path = tmp_path_factory.mktemp("corpora")
    train_tokenizer(texts, 290, path / "tokenizer")
    encoder = Encoder.open(path / "tokenizer", texts)
    rearranged = encoder.encode([ToEncode(t, n, 0.5) for n, t in enumerate(texts[:100])], 0, spm_share=0.5)
    assert {order for _, order in rearranged} == {None, "psm", "spm"}
    ids = [each[1:-1].tolist() for each, _ in rearranged]
    ids += [each[0][1:-1].tolist() for each in encoder.encode([ToEncode(t, 0, 0.0) for t in texts[100:]], 0)]
    sizes = [len(text.encode()) for text in texts]
    found = write_corpus(path / "c", {"a": ids[:100], "none": [[7]]}, {"a": ids[100:]}, 290, sizes={"a": sizes})
    (path / "tokenizer").rename(found.tokenizer_directory)
    return found


def test_a_model_of_words_beats_compressors_but_not_the_source(corpus: Corpus) -> None:
    found = {each.method: each for each in baselines(corpus)}
    assert {each.source for each in found.values()} == {"a"}
    bits = {name: each.bits_per_byte for name, each in found.items()}
    entropy = np.log2(len(WORDS)) / (np.mean([len(word) for word in WORDS]) + 1)
    assert entropy < bits["n-gram"] < bits["zstd, prefixed"] <= bits["zstd, whole"] < bits["zstd, each"]
    assert bits["n-gram"] < 1.15 * entropy
    targets = corpus.num_tokens("heldout", "a") - corpus.num_documents("heldout", "a")
    knowing_nothing = targets * math.log2(corpus.manifest.vocab_size) / corpus.num_bytes("heldout", "a")
    assert bits["zstd, each"] < knowing_nothing
    assert found["n-gram"].num_bytes == corpus.num_bytes("heldout", "a")


def test_figures_are_kept_beside_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    assert read_baselines(corpus.path) == []
    found = baselines(corpus)
    write_baselines(corpus, found)
    assert read_baselines(corpus.path) == found


def test_nothing_held_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no source has held-out documents"):
        baselines(write_corpus(tmp_path / "c", {"a": [[5]]}))
