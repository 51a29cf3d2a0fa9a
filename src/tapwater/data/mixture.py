"""Which source the next document is from, and which of its documents it is."""

from collections.abc import Mapping, Sequence

from tapwater.config.parse import nearest
from tapwater.data.corpus import Corpus
from tapwater.data.permutation import shuffled
from tapwater.errors import DataError


def shares(corpus: Corpus, weights: Mapping[str, float]) -> list[float]:
    """The share of each of the corpus's sources in the tokens trained on, adding up to 1.

    Without weights that of its tokens; with weights, sources that are not named are not read. DataError when a named
    source is unknown or has nothing to train on, or when no source has.
    """
    sizes = {source: corpus.num_tokens("train", source) for source in corpus.sources}
    for name in weights:
        if name not in sizes:
            raise DataError(
                f"data.mixture: {corpus.path} has no source {name!r}{nearest(name, sizes)}; "
                f"it has {', '.join(sizes) or 'none'}"
            )
        if not sizes[name]:
            raise DataError(f"data.mixture: source {name!r} of {corpus.path} has no documents to train on")
    wanted = [float(weights.get(name, 0.0) if weights else size) for name, size in sizes.items()]
    if not sum(wanted):
        raise DataError(f"{corpus.path}: there is no document to train on")
    return [each / sum(wanted) for each in wanted]


class Mixture:
    """An endless stream of documents, (source, number) each, whose tokens keep to `shares`.

    The next document is of the source that is furthest behind its share of tokens, so the shares realised are off by a
    document at the most and nothing is left to chance. Every source goes through its documents in an order of its own
    for each epoch. All there is to save are two numbers for each source.
    """

    def __init__(self, corpus: Corpus, shares: Sequence[float], seed: int) -> None:
        self._corpus, self._shares, self._seed = corpus, shares, seed
        self.taken = [0] * len(shares)  # documents of each source so far, over all epochs
        self.tokens = [0] * len(shares)  # inputs in them

    def next(self) -> tuple[int, int]:
        """Index of a source and number of one of its documents."""
        total = sum(self.tokens) + 1
        behind = [share * total - tokens for share, tokens in zip(self._shares, self.tokens, strict=True)]
        source = max((index for index, share in enumerate(self._shares) if share), key=behind.__getitem__)
        name = self._corpus.sources[source]
        size = self._corpus.num_documents("train", name)
        epoch, place = divmod(self.taken[source], size)
        number = shuffled(place, size, self._seed, source, epoch)
        self.taken[source] += 1
        self.tokens[source] += self._corpus.document_tokens("train", name, number) - 1
        return source, number
