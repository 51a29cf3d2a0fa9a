"""Rows of held-out documents, to be scored in bits per byte."""

from collections.abc import Iterator

from tapwater.data.batch import Batch, Span, batch_of
from tapwater.data.corpus import Corpus
from tapwater.data.permutation import shuffled
from tapwater.errors import DataError

_KEY = 0x6865_6C64  # the order is one for all runs: their numbers are of the same documents


def heldout_rows(corpus: Corpus, source: str, sequence_length: int, limit: int | None = None) -> Iterator[Batch]:
    """The held-out documents of a source as batches of one row, `limit` of them at the most (None: all).

    A document is scored in full or not at all: every token after its BOS, EOS too, is a target exactly once. One that
    fits a row is never cut, longer ones start rows of their own. The row that a document ends in carries the bytes of
    its text in `num_bytes`, so over all rows

        bits per byte = sum of the targets' losses in nats / ln 2 / sum of num_bytes

    is the length of a code that a reader could decode. Documents come in a fixed shuffled order: few rows are a sample.
    With a limit, a document that needs more
    rows than are left is passed over. DataError when the source has no held-out documents, or
    none fits.
    """
    index, size = corpus.source_index(source), corpus.num_documents("heldout", source)
    if not size:
        raise DataError(f"{corpus.path}: source {source} has no held-out documents")
    row: list[Span] = []  # the one that is open
    room, num_bytes, begun = 0, 0, 0
    for place in range(size):
        number = shuffled(place, size, _KEY)
        tokens = corpus.document("heldout", source, number)
        length = len(tokens) - 1
        if length > room:
            needed = -(-length // sequence_length)
            if limit is not None and begun + needed > limit:
                if begun == limit:
                    break
                continue
            if row:
                yield batch_of([row], sequence_length, num_bytes)
            begun += needed
            *whole, tokens = [tokens[at : at + sequence_length + 1] for at in range(0, length, sequence_length)]
            for piece in whole:
                yield batch_of([[Span(piece, index)]], sequence_length)
            row = []
            room, num_bytes = sequence_length, 0
        row.append(Span(tokens, index))
        room -= len(tokens) - 1
        num_bytes += corpus.document_bytes("heldout", source, number)
    if not row:
        raise DataError(
            f"{corpus.path}: no held-out document of {source} fits {limit} rows of {sequence_length} tokens"
        )
    yield batch_of([row], sequence_length, num_bytes)
