"""Batches from a corpus: reproducible, and resumable at any row from a few numbers."""

from collections.abc import Mapping
from typing import Any

from tapwater.config.pretrain import DataSection
from tapwater.data.batch import Batch, Span, batch_of
from tapwater.data.corpus import Corpus
from tapwater.data.mixture import Mixture, shares
from tapwater.data.packing import Packer, Piece
from tapwater.data.permutation import hashed
from tapwater.errors import DataError

_ROWS = -1  # key of the choices of first pieces; sources count from 0


class Loader:
    """An endless stream of packed rows of the training documents.

    The same corpus, `data` and seed give the same rows, however they are grouped into draws: every process draws the
    global batch and takes its rows. Raises DataError for a mixture the corpus cannot give.
    """

    def __init__(self, corpus: Corpus, data: DataSection, seed: int) -> None:
        self._corpus, self._data, self._seed = corpus, data, seed
        self.shares = shares(corpus, data.mixture)  # of each source in the tokens drawn
        self._mixture = Mixture(corpus, self.shares, seed)
        self._packer = Packer(data.sequence_length, data.packing_buffer)
        self._row = 0

    def draw(self, num_sequences: int) -> Batch:
        """The next rows; every token of them is a piece of a document, there is no padding."""
        rows: list[list[Span]] = []
        for _ in range(num_sequences):
            pieces = self._packer.row(hashed(self._seed, _ROWS, self._row), self._next_piece)
            rows.append([self._span(piece) for piece in pieces])
            self._row += 1
        return batch_of(rows, self._data.sequence_length)

    @property
    def epochs(self) -> dict[str, float]:
        """How often the documents of each source have been drawn, what waits to be packed included."""
        taken = zip(self._corpus.sources, self._mixture.taken, strict=True)
        return {name: count / max(1, self._corpus.num_documents("train", name)) for name, count in taken}

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, as plain JSON: counts, and references to what waits to be packed."""
        return self._identity() | {
            "row": self._row,
            "taken": list(self._mixture.taken),
            "tokens": list(self._mixture.tokens),
            "buffer": [list(piece) for piece in self._packer.pieces],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        DataError when it is of another corpus, or of other settings: the rows to come would not be those it is of.
        """
        for name, own in self._identity().items():
            found = state.get(name)
            if found != own:
                what = "another corpus" if name == "corpus" else f"other settings: {name}"
                raise DataError(f"{self._corpus.path}: the saved place is of {what}, {found!r} and not {own!r}")
        try:
            mixture = Mixture(self._corpus, self.shares, self._seed)
            mixture.taken, mixture.tokens = ([int(each) for each in state[name]] for name in ("taken", "tokens"))
            packer = Packer(self._data.sequence_length, self._data.packing_buffer)
            packer.put(Piece(*(int(each) for each in piece)) for piece in state["buffer"])
            row = int(state["row"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self._corpus.path}: the saved place cannot be read: {error!r}") from None
        if not len(mixture.taken) == len(mixture.tokens) == len(self._corpus.sources):
            raise DataError(f"{self._corpus.path}: the saved place counts {len(mixture.taken)} sources")
        self._mixture, self._packer, self._row = mixture, packer, row

    def _identity(self) -> dict[str, Any]:
        return {
            "corpus": self._corpus.fingerprint,
            "seed": self._seed,
            "sequence_length": self._data.sequence_length,
            "packing_buffer": self._data.packing_buffer,
            "mixture": dict(self._data.mixture),
        }

    def _next_piece(self) -> Piece:
        source, number = self._mixture.next()
        name = self._corpus.sources[source]
        length = self._corpus.document_tokens("train", name, number) - 1
        epoch = (self._mixture.taken[source] - 1) // self._corpus.num_documents("train", name)
        return Piece(length, source, number, 0, epoch)

    def _span(self, piece: Piece) -> Span:
        document = self._corpus.document("train", self._corpus.sources[piece.source], piece.number)
        return Span(document[piece.start : piece.start + piece.length + 1], piece.source)
