"""What a step trains on: rows of tokens packed from documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PADDING = -1  # source of a token that belongs to no document


@dataclass(frozen=True)
class Batch:
    """B rows of S tokens. A document is `BOS t1 .. tn EOS`; a piece of n inputs has the n tokens after them as targets.

    lengths: for each row those of its pieces, adding up to S. Pieces never attend to each other; padding is a piece of
    its own, masked. source_BS indexes the corpus's sources. num_bytes: UTF-8 bytes of text whose tokens are all
    targets here or in the rows before; only `heldout_rows` counts them, of documents scored in full.
    """

    tokens_BS: NDArray[np.int64]
    targets_BS: NDArray[np.int64]
    loss_mask_BS: NDArray[np.bool_]
    lengths: tuple[tuple[int, ...], ...]
    source_BS: NDArray[np.int16]
    num_bytes: int = 0

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows start to stop, as views. They carry no num_bytes: a document may go on in the next row."""
        part = slice(start, stop)
        return Batch(
            self.tokens_BS[part],
            self.targets_BS[part],
            self.loss_mask_BS[part],
            self.lengths[part],
            self.source_BS[part],
        )

    @property
    def num_targets(self) -> int:
        """How many tokens are predicted."""
        return int(self.loss_mask_BS.sum())


@dataclass(frozen=True)
class Span:
    """A piece of a document in a row: its inputs with the one token after them, and its source."""

    tokens: NDArray[np.unsignedinteger]  # [n + 1]
    source: int


def batch_of(rows: Sequence[Sequence[Span]], sequence_length: int, num_bytes: int = 0) -> Batch:
    """Rows of spans as a batch; what they leave of a row is padding."""
    shape = (len(rows), sequence_length)
    tokens_BS, targets_BS = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    loss_mask_BS, source_BS = np.zeros(shape, np.bool_), np.full(shape, PADDING, np.int16)
    lengths: list[tuple[int, ...]] = []
    for row, spans in enumerate(rows):
        filled: list[int] = []
        start = 0
        for span in spans:
            stop = start + len(span.tokens) - 1
            tokens_BS[row, start:stop] = span.tokens[:-1]
            targets_BS[row, start:stop] = span.tokens[1:]
            source_BS[row, start:stop] = span.source
            filled.append(stop - start)
            start = stop
        loss_mask_BS[row, :start] = True
        lengths.append((*filled, sequence_length - start) if start < sequence_length else tuple(filled))
    return Batch(tokens_BS, targets_BS, loss_mask_BS, tuple(lengths), source_BS, num_bytes)


def join(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches of one sequence length, one after another."""
    return Batch(
        np.concatenate([each.tokens_BS for each in batches]),
        np.concatenate([each.targets_BS for each in batches]),
        np.concatenate([each.loss_mask_BS for each in batches]),
        tuple(lengths for each in batches for lengths in each.lengths),
        np.concatenate([each.source_BS for each in batches]),
        sum(each.num_bytes for each in batches),
    )
