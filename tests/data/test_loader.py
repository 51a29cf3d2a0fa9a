"""The loader: exact after a restore, every token once an epoch, rows that never mix documents."""

import json
from collections import Counter
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tapwater.config.pretrain import DataSection
from tapwater.data.batch import Batch, join
from tapwater.data.corpus import Corpus
from tapwater.data.loader import Loader
from tapwater.errors import DataError
from tiny_corpus import BOS, EOS, random_documents, write_corpus

S = 64


def section(corpus: Corpus, mixture: dict[str, float] | None = None, buffer: int = 32) -> DataSection:
    return DataSection(str(corpus.path), S, mixture or {}, buffer)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpora") / "two"
    long = random_documents(3, 1000, 7)  # many rows each
    return write_corpus(
        path,
        {"prose": random_documents(150, 40, 1) + long, "code": random_documents(60, 90, 2)},
        {"prose": random_documents(20, 50, 3) + random_documents(1, 300, 4)},
        shard_tokens=2000,
    )


def same(first: Batch, second: Batch) -> bool:
    arrays = [each.name for each in fields(Batch) if each.name.endswith("_BS")]
    equal = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)
    return equal and first.lengths == second.lengths


def pieces_of(batch: Batch) -> list[tuple[list[int], list[int], int]]:
    found = []
    for row, lengths in enumerate(batch.lengths):
        edges = np.cumsum([0, *lengths])
        for start, stop in pairwise(edges):
            part = slice(start, stop)
            assert len(set(batch.source_BS[row, part].tolist())) == 1
            found.append((batch.tokens_BS[row, part].tolist(), batch.targets_BS[row, part].tolist(),
                          int(batch.source_BS[row, start])))  # fmt: skip
    return found


def test_draws_after_a_restore_are_those_that_would_have_come(corpus: Corpus) -> None:
    straight, first = Loader(corpus, section(corpus), 5), Loader(corpus, section(corpus), 5)
    wanted = straight.draw(10)
    begun = first.draw(5)
    resumed = Loader(corpus, section(corpus), 5)
    resumed.restore(json.loads(json.dumps(first.state())))
    assert same(wanted, join([begun, resumed.draw(5)]))
    assert same(straight.draw(40), resumed.draw(40))
    assert straight.state() == resumed.state()


def test_grouping_of_draws_changes_nothing_and_the_seed_everything(corpus: Corpus) -> None:
    one, other = Loader(corpus, section(corpus), 5), Loader(corpus, section(corpus), 5)
    assert same(one.draw(6), join([other.draw(1), other.draw(3), other.draw(2)]))
    assert not same(one.draw(6), Loader(corpus, section(corpus), 6).draw(6))


def test_rows_of_a_process_are_a_slice(corpus: Corpus) -> None:
    batch = Loader(corpus, section(corpus), 5).draw(4)
    assert same(batch, join([batch.rows(0, 1), batch.rows(1, 4)]))


def test_a_piece_is_of_one_document_and_its_targets_follow_its_inputs(corpus: Corpus) -> None:
    batch = Loader(corpus, section(corpus), 5).draw(30)
    assert batch.loss_mask_BS.all() and batch.num_targets == 30 * S
    assert [sum(lengths) for lengths in batch.lengths] == [S] * 30
    for tokens, targets, _ in pieces_of(batch):
        assert tokens[1:] == targets[:-1]
        assert BOS not in tokens[1:] and EOS not in tokens and BOS not in targets and EOS not in targets[:-1]


def test_every_token_is_a_target_exactly_once_an_epoch(tmp_path: Path) -> None:
    # numbered through, so that a target tells its document and its place there
    lengths = [3, 200, 17, 64, 65, 1, 0, 40, 128]
    starts = np.cumsum([2, *lengths])
    documents = [list(range(a, b)) for a, b in pairwise(starts)]
    corpus = write_corpus(tmp_path / "c", {"a": documents})
    loader = Loader(corpus, section(corpus, buffer=4), 1)
    rows = loader.draw(50)
    seen = Counter(rows.targets_BS.reshape(-1).tolist())
    for length, _, number, start, _ in (tuple(piece) for piece in loader.state()["buffer"]):
        seen.update(corpus.document("train", "a", number)[start + 1 : start + length + 1].tolist())
    epochs = Counter(token for document in documents for token in document)
    taken = loader.state()["taken"][0]
    assert taken > 3 * len(documents)
    for token in epochs:
        assert taken // len(documents) <= seen[token] <= -(-taken // len(documents))
    assert sum(seen.values()) == loader.state()["tokens"][0]
    assert seen[EOS] == taken


def test_each_epoch_has_an_order_of_its_own_and_every_document(corpus: Corpus) -> None:
    from tapwater.data.permutation import shuffled

    orders = [[shuffled(place, 61, 3, 0, epoch) for place in range(61)] for epoch in range(3)]
    assert all(sorted(order) == list(range(61)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert [shuffled(0, 1, 9), shuffled(0, 2, 9) + shuffled(1, 2, 9)] == [0, 1]


@pytest.mark.parametrize(("weights", "share"), [({"prose": 1.0, "code": 3.0}, 0.75), ({"code": 2.0}, 1.0)])
def test_realised_shares_are_those_asked_for(corpus: Corpus, weights: dict[str, float], share: float) -> None:
    loader = Loader(corpus, section(corpus, weights), 5)
    batch = loader.draw(200)
    code = (batch.source_BS == corpus.sources.index("code")).mean()
    longest = max(corpus.document_tokens("train", "prose", n) for n in range(153))
    waiting = 33 * S  # what is still in the buffer may be all of one source
    assert abs(code - share) * 200 * S <= longest + waiting
    tokens = loader.state()["tokens"]
    assert abs(tokens[corpus.sources.index("code")] - share * sum(tokens)) <= longest


def test_without_weights_the_sources_end_their_epochs_together(corpus: Corpus) -> None:
    loader = Loader(corpus, section(corpus), 5)
    loader.draw(400)
    prose, code = loader.epochs.values()
    assert prose > 1 and abs(prose - code) < 0.3


def test_best_fit_cuts_fewer_documents_than_laying_them_end_to_end(tmp_path: Path) -> None:
    documents = random_documents(600, 40, 11)
    corpus = write_corpus(tmp_path / "c", {"a": documents})
    loader = Loader(corpus, section(corpus, buffer=256), 0)
    batch = loader.draw(300)
    cut = sum(tokens[0] != BOS for tokens, _, _ in pieces_of(batch))
    ends = np.cumsum([len(each) + 1 for each in documents])
    laid = sum(1 for a, b in zip([0, *ends], ends, strict=False) for edge in range(S, 300 * S, S) if a < edge < b)
    assert cut < laid / 2


def test_places_of_other_corpora_and_settings_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", {"prose": random_documents(20, 40, 1), "code": [[2]]})
    state = Loader(corpus, section(corpus), 5).state()
    with pytest.raises(DataError, match="another corpus"):
        Loader(other, section(other), 5).restore(state)
    with pytest.raises(DataError, match="other settings: seed"):
        Loader(corpus, section(corpus), 6).restore(state)
    with pytest.raises(DataError, match="cannot be read"):
        Loader(corpus, section(corpus), 5).restore({k: v for k, v in state.items() if k != "buffer"})


def test_mixtures_a_corpus_cannot_give_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no source 'pros'; did you mean 'prose'"):
        Loader(corpus, section(corpus, {"pros": 1.0}), 0)
    empty = write_corpus(tmp_path / "empty", {"a": []})
    with pytest.raises(DataError, match="no document to train on"):
        Loader(empty, section(empty), 0)
    with pytest.raises(DataError, match=r"'a' of .* has no documents"):
        Loader(empty, section(empty, {"a": 1.0}), 0)
