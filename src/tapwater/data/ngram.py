"""Interpolated modified Kneser-Ney n-grams (Chen and Goodman 1998), counted and scored as whole arrays.

A gram of order n is known by its number among all grams of that order; it is found from the number of its first n - 1
symbols and its last one, which fit 64 bits together whatever the vocabulary. Nothing is hashed: counts are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NONE = -1  # a gram that was not seen, or would reach over the start of a document


@dataclass(frozen=True)
class _Order:
    """The grams of one order and what the formula needs of them, when they are the longest and when they are not."""

    keys: Ints  # sorted: number of the context * vocabulary + last symbol
    raw: "_Weights"
    continued: "_Weights"


@dataclass(frozen=True)
class _Weights:
    seen: Floats  # for each gram: its discounted count
    total: Floats  # for each context: the counts of its grams
    rest: Floats  # for each context: the counts taken away, which go to the lower order


class NGrams:
    """Counts of documents `BOS .. EOS`; no gram reaches over the start of a document."""

    def __init__(self, documents: Sequence[NDArray[np.integer]], vocab_size: int, order: int) -> None:
        """Count grams of up to `order` symbols. There must be a document."""
        self.vocab_size = vocab_size
        symbols, places = _laid(documents)
        grams = [np.where(places >= 0, symbols, NONE)]  # of order n, by the place they end at
        keys, firsts = [np.arange(vocab_size)], [np.zeros(0, np.int64)]
        counts = [np.bincount(symbols[places > 0], minlength=vocab_size)]  # BOS is never predicted
        for length in range(1, order):
            ends = np.flatnonzero(places >= length)
            found = grams[-1][ends - 1] * vocab_size + symbols[ends]
            unique, first, inverse, count = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
            numbered = np.full(len(symbols), NONE)
            numbered[ends] = inverse
            grams.append(numbered)
            keys.append(unique)
            counts.append(count)
            firsts.append(ends[first])
        self._orders: list[_Order] = []
        for index in range(order):
            contexts = 1 if index == 0 else len(keys[index - 1])
            context = np.zeros(vocab_size, np.int64) if index == 0 else keys[index] // vocab_size
            continued = counts[index]
            if index + 1 < order:
                # one for each symbol seen before the gram; none is seen before the start of a document
                continued = np.bincount(grams[index][firsts[index + 1]], minlength=len(keys[index]))
                starts = continued == 0
                continued = np.where(starts, counts[index], continued)
            weights = [_weights(each, context, contexts) for each in (counts[index], continued)]
            self._orders.append(_Order(keys[index], *weights))

    def log2(self, documents: Sequence[NDArray[np.integer]]) -> Floats:
        """Scores [order, targets]: log2 of the probability of every symbol after a BOS, by models of 1 .. order."""
        symbols, places = _laid(documents)
        targets = places > 0
        scores = np.zeros((len(self._orders), int(targets.sum())))
        grams = symbols
        lower = np.full(len(symbols), 1 / self.vocab_size)
        for index, order in enumerate(self._orders):
            contexts = np.zeros(len(symbols), np.int64) if index == 0 else np.concatenate(([NONE], grams[:-1]))
            if index:
                contexts = np.where(places >= index, contexts, NONE)
                grams = _find(order.keys, np.where(contexts >= 0, contexts * self.vocab_size + symbols, NONE))
            with_raw = _interpolate(order.raw, grams, contexts, lower)
            scores[index] = np.log2(with_raw[targets])
            lower = _interpolate(order.continued, grams, contexts, lower)
        return scores


def _laid(documents: Sequence[NDArray[np.integer]]) -> tuple[Ints, Ints]:
    """Documents one after another, and the place of each symbol in its document."""
    symbols = np.concatenate([np.asarray(each, np.int64) for each in documents])
    lengths = np.array([len(each) for each in documents])
    starts = np.cumsum(lengths) - lengths
    return symbols, np.arange(len(symbols)) - np.repeat(starts, lengths)


def _weights(counts: Ints, contexts: Ints, num_contexts: int) -> _Weights:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(contexts, counts, num_contexts).astype(np.float64)
    rest = np.bincount(contexts, discounts, num_contexts).astype(np.float64)
    return _Weights(counts - discounts, total, rest)


def _discounts(counts: Ints) -> Floats:
    """What is taken from counts of 0, 1, 2, and 3 or more (Chen and Goodman 1998, eq. 26), never all of a count."""
    n1, n2, n3, n4 = (max(1, int((counts == each).sum())) for each in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    wanted = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return np.array([0.0, *(min(max(each, 0.1), 0.95 * size) for size, each in enumerate(wanted, 1))])


def _find(keys: Ints, wanted: Ints) -> Ints:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, NONE) if len(keys) else np.full(len(wanted), NONE)


def _interpolate(weights: _Weights, grams: Ints, contexts: Ints, lower: Floats) -> Floats:
    """The probability of this order: counts less discounts, and what was discounted shared out as `lower` says."""
    if not len(weights.seen):
        return lower
    seen = np.where(grams >= 0, weights.seen[grams], 0.0)
    total = np.where(contexts >= 0, weights.total[contexts], 0.0)
    known = total > 0
    mixed = (seen + weights.rest[contexts] * lower) / np.where(known, total, 1.0)
    return np.where(known, mixed, lower)
