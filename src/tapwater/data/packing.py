"""Rows filled with pieces of documents: which ones go together so that few documents are cut.

Best fit (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"), from a buffer instead of the whole corpus.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Piece(NamedTuple):
    """Inputs `start` to `start + length` of a document; the first field orders a buffer, the others make that order
    depend on nothing else."""

    length: int
    source: int
    number: int
    start: int
    epoch: int = 0  # a document that comes round again while its first copy waits is another piece


class Packer:
    """A buffer of pieces, none longer than a row, from which rows are filled to the last token.

    A row begins with any piece, so that the rows of a long document are spread. What it still needs is taken from one
    piece or two that fill it exactly, else from the largest that fits. When none fits, the smallest is cut: the row
    gets its start, and the rest goes back. Nothing is lost.
    """

    def __init__(self, sequence_length: int, buffer_size: int) -> None:
        self._sequence_length, self._buffer_size = sequence_length, buffer_size
        self._buffer: list[Piece] = []  # sorted

    @property
    def pieces(self) -> list[Piece]:
        """What waits in the buffer."""
        return list(self._buffer)

    def put(self, pieces: Iterable[Piece]) -> None:
        """Add pieces, cut into whole rows and a rest where they are longer than one."""
        for piece in pieces:
            for start in range(0, piece.length, self._sequence_length):
                length = min(self._sequence_length, piece.length - start)
                insort(self._buffer, piece._replace(start=piece.start + start, length=length))

    def row(self, first: int, next_piece: Callable[[], Piece]) -> list[Piece]:
        """The pieces of a row; `first` is any number and picks the one it begins with, `next_piece` refills."""
        self._refill(next_piece)
        row = [self._buffer.pop(first % len(self._buffer))]
        room = self._sequence_length - row[0].length
        while room:
            self._refill(next_piece)
            piece = self._buffer.pop(self._best(room))
            if piece.length > room:
                self.put([piece._replace(start=piece.start + room, length=piece.length - room)])
                piece = piece._replace(length=room)
            row.append(piece)
            room -= piece.length
        return row

    def _best(self, room: int) -> int:
        """The place of the piece to go on with: the larger of an exact pair, or the largest, or the smallest of all."""
        largest = bisect_left(self._buffer, (room + 1,)) - 1
        low, high = 0, largest
        while low < high and self._buffer[largest].length < room:
            both = self._buffer[low].length + self._buffer[high].length
            if both == room:
                return high
            if both < room:
                low += 1
            else:
                high -= 1
        return max(largest, 0)

    def _refill(self, next_piece: Callable[[], Piece]) -> None:
        while len(self._buffer) < self._buffer_size:
            self.put([next_piece()])
