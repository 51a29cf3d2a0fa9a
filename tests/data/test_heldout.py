"""Held-out rows: every token of a document is scored once, its bytes are counted once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwater.data.batch import PADDING
from tapwater.data.corpus import Corpus
from tapwater.data.heldout import heldout_rows
from tapwater.errors import DataError
from tiny_corpus import BOS, random_documents, write_corpus

S = 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpora") / "heldout"
    documents = random_documents(30, 20, 3) + random_documents(3, 200, 4) + [[], [9] * (S - 1), [9] * S]
    return write_corpus(path, {"a": [[5]], "b": [[5]]}, {"a": documents})


@given(limit=st.one_of(st.none(), st.integers(1, 60)))
def test_documents_are_scored_in_full_and_their_bytes_counted_once(corpus: Corpus, limit: int | None) -> None:
    rows = list(heldout_rows(corpus, "a", S, limit))
    assert limit is None or len(rows) <= limit
    targets = sum(row.num_targets for row in rows)
    documents = sum(int((row.tokens_BS == BOS)[row.loss_mask_BS].sum()) for row in rows)
    # a document of n bytes has n + 1 targets in this corpus
    assert targets == sum(row.num_bytes for row in rows) + documents
    if limit is None:
        assert documents == corpus.num_documents("heldout", "a")
        assert sum(row.num_bytes for row in rows) == corpus.num_bytes("heldout", "a")
    for row in rows:
        assert sum(row.lengths[0]) == S
        assert (row.source_BS[~row.loss_mask_BS] == PADDING).all() and (row.source_BS[row.loss_mask_BS] == 0).all()


def test_a_document_that_fits_a_row_is_not_cut(corpus: Corpus) -> None:
    for row in heldout_rows(corpus, "a", S):
        starts = np.cumsum([0, *row.lengths[0]])[:-1]
        cut = [start for start in starts if row.loss_mask_BS[0, start] and row.tokens_BS[0, start] != BOS]
        assert cut in ([], [0])  # the rest of a long one, at the start of a row


def test_a_sample_is_the_same_every_time_and_the_start_of_all(corpus: Corpus) -> None:
    first, again = (list(heldout_rows(corpus, "a", S, 5)) for _ in range(2))
    assert all(np.array_equal(a.tokens_BS, b.tokens_BS) for a, b in zip(first, again, strict=True))


def test_nothing_to_score_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source b has no held-out documents"):
        next(heldout_rows(corpus, "b", S))
    long = write_corpus(tmp_path / "c", {"a": []}, {"a": [[5] * 200]})
    with pytest.raises(DataError, match="no held-out document of a fits 2 rows of 32"):
        next(heldout_rows(long, "a", S, 2))
