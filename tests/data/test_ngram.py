"""The n-gram model against a dictionary version of the formula, and its probabilities against 1."""

from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwater.data.ngram import NGrams

BOS, EOS, V = 0, 1, 6
Document = list[int]


class Naive:
    """Modified Kneser-Ney as Chen and Goodman write it, one probability at a time."""

    def __init__(self, documents: list[Document], order: int) -> None:
        self.order = order
        self.raw: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        for document in documents:
            for end in range(1, len(document)):
                for n in range(1, min(order, end + 1) + 1):
                    self.raw[n][tuple(document[end + 1 - n : end + 1])] += 1

    def counts(self, n: int) -> Counter[tuple[int, ...]]:
        if n == self.order:
            return self.raw[n]
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for gram in self.raw[n + 1]:
            before[gram[1:]].add(gram[0])
        return Counter({gram: len(before[gram]) or count for gram, count in self.raw[n].items()})

    def probability(self, word: int, history: tuple[int, ...]) -> float:
        n = min(self.order, len(history) + 1)
        return self._level(n, word, history[len(history) - n + 1 :])

    def _level(self, n: int, word: int, history: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / V
        lower = self._level(n - 1, word, history[1:])
        counts = self.counts(n)
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == history}
        if not after:
            return lower
        of = Counter(counts.values())
        n1, n2, n3, n4 = (max(1, of[size]) for size in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        wanted = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        discount = [0.0] + [min(max(each, 0.1), 0.95 * size) for size, each in enumerate(wanted, 1)]
        taken = sum(discount[min(3, count)] for count in after.values())
        count = after.get(word, 0)
        return (count - discount[min(3, count)] + taken * lower) / sum(after.values())


bodies = st.lists(st.lists(st.integers(2, V - 1), max_size=12), min_size=1, max_size=8)


@settings(max_examples=40)
@given(train=bodies, test=bodies, order=st.integers(1, 4))
def test_scores_are_those_of_the_formula(train: list[Document], test: list[Document], order: int) -> None:
    training, testing = ([[BOS, *body, EOS] for body in part] for part in (train, test))
    scores = NGrams([np.array(each) for each in training], V, order).log2([np.array(each) for each in testing])
    for longest in range(1, order + 1):
        naive = Naive(training, longest)
        wanted = [
            naive.probability(each[end], tuple(each[:end])) for each in testing for end in range(1, len(each))
        ]  # fmt: skip
        assert 2 ** scores[longest - 1] == pytest.approx(wanted)


def test_probabilities_of_all_continuations_add_up_to_one() -> None:
    generator = np.random.default_rng(0)
    training = [np.array([BOS, *generator.integers(2, V, 30), EOS]) for _ in range(5)]
    model = NGrams(training, V, 3)
    for history in [(), (2,), (3, 4), (5, 5, 2), (2, 3, 4, 5)]:
        scores = model.log2([np.array([BOS, *history, word]) for word in range(V)])
        last = np.cumsum([len(history) + 1] * V) - 1
        assert (2 ** scores[:, last]).sum(axis=1) == pytest.approx([1.0] * 3)


def test_a_pattern_is_learnt_by_the_order_that_sees_it() -> None:
    documents = [np.array([BOS, *([2, 3, 2, 4] * 50), EOS])] * 3
    bits = -NGrams(documents, V, 4).log2(documents).mean(axis=1)
    assert bits[2] < 0.1 < 0.4 < bits[1]


def test_contexts_do_not_reach_over_documents() -> None:
    documents = [np.array([BOS, a, b, EOS]) for a, b in product((2, 3), (4, 5))]
    together = NGrams(documents, V, 4).log2(documents)
    apart = [NGrams(documents, V, 4).log2([each]) for each in documents]
    assert together == pytest.approx(np.concatenate(apart, axis=1))
