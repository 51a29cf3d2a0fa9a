"""What compressors and an n-gram model reach on held-out text: the bits per byte that a model has to beat.

- zstd, whole: level 19 over all held-out texts in a row, with a dictionary trained on training text.
- zstd, each: the same, every document alone.
- zstd, prefixed: level 19 over all held-out texts in a row, as if they went on where the training text ends.
- n-gram: interpolated modified Kneser-Ney over the corpus's tokens or over bytes, whichever unit and order were best on
  a twentieth of the training documents that was kept apart for it; then counted on all of them. EOS is predicted too.

Every source is on its own: its training text, its held-out text. Of very large sources a drawn part is counted.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from tapwater.config.parse import from_mapping
from tapwater.data.corpus import Corpus, Progress
from tapwater.data.fim import FimIds
from tapwater.data.manifest import Split
from tapwater.data.ngram import NGrams
from tapwater.data.permutation import shuffled
from tapwater.data.replacing import replace_text
from tapwater.errors import ConfigError, DataError
from tapwater.text import Tokenizer
from tapwater.text.control import FIM_TOKENS

NAME = "baselines.json"
LEVEL = 19
DICTIONARY_BYTES = 112_640  # the default of the zstd command
PREFIX_BYTES = 2**23
MAGIC_BYTES = 4  # with which every frame begins
TRAINING_BYTES = 2**25  # of a source: text that is counted; 3 GB of memory for 55 MB
HELDOUT_BYTES = 2**22  # of a source: text that is scored
TUNING_BYTES = 2**22
TOKEN_ORDER, BYTE_ORDER = 7, 8
_BOS_BYTE, _EOS_BYTE = 256, 257  # marks beside the bytes
_KEY = 0x6261_7365  # of the order in which documents are taken

Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Baseline:
    """What one method reaches on the held-out text of a source; `detail` says what was tuned and counted."""

    source: str
    method: str
    bits_per_byte: float
    num_bytes: int  # of held-out text
    detail: str


def baselines(corpus: Corpus, progress: Progress = lambda done, total: None) -> list[Baseline]:
    """The baselines of every source that has held-out documents; DataError when none has."""
    sources = [each for each in corpus.sources if corpus.num_documents("heldout", each)]
    if not sources:
        raise DataError(f"{corpus.path}: no source has held-out documents")
    reader = _Reader(corpus)
    found: list[Baseline] = []
    for done, source in enumerate(sources):
        progress(done, len(sources))
        training = reader.documents("train", source, TRAINING_BYTES)
        heldout = reader.documents("heldout", source, HELDOUT_BYTES)
        texts, unseen = [reader.text(each) for each in training], [reader.text(each) for each in heldout]
        num_bytes = sum(map(len, unseen))
        if not num_bytes or not training:
            continue
        scores = _zstd(texts, unseen) | _ngram(training, heldout, texts, unseen, corpus.manifest.vocab_size)
        found += [
            Baseline(source, name, bits / num_bytes, num_bytes, detail) for name, (bits, detail) in scores.items()
        ]
    progress(len(sources), len(sources))
    return found


class _Reader:
    """Documents of a corpus as they read, and their text."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
        self._bytes = [tokenizer.text_bytes(token) for token in range(corpus.manifest.vocab_size)]
        spelt = {tokenizer.token_text(token): token for token in range(corpus.manifest.vocab_size)}
        marks = [spelt.get(each) for each in FIM_TOKENS]
        self._marks = None if None in marks else FimIds(*marks)  # pyrefly: ignore[bad-argument-type]

    def documents(self, split: Split, source: str, most_bytes: int) -> list[Ids]:
        """Documents in a drawn order, `most_bytes` of text or a little more; infilling ones in reading order."""
        found: list[Ids] = []
        size, num_bytes = self._corpus.num_documents(split, source), 0
        for place in range(size):
            number = shuffled(place, size, _KEY)
            found.append(self._in_reading_order(self._corpus.document(split, source, number)))
            num_bytes += self._corpus.document_bytes(split, source, number)
            if num_bytes >= most_bytes:
                break
        return found

    def text(self, document: Ids) -> bytes:
        return b"".join([self._bytes[token] for token in document.tolist()])

    def _in_reading_order(self, document: Ids) -> Ids:
        marks = self._marks
        if marks is None or len(document) < 2 or document[1] != marks.begin:
            return document
        hole, end = (int(np.flatnonzero(document == mark)[0]) for mark in (marks.hole, marks.end))
        prefix, suffix, middle = document[2:hole], document[hole + 1 : end], document[end + 1 : -1]
        return np.concatenate((document[:1], prefix, middle, suffix, document[-1:]))


def _zstd(training: Sequence[bytes], heldout: Sequence[bytes]) -> dict[str, tuple[float, str]]:
    """Bits of each method. A frame without magic number, size, dictionary's id and checksum is all a reader needs."""
    text = b"".join(heldout)
    samples = [part[at : at + 2**17] for part in training for at in range(0, len(part), 2**17)]
    try:
        trained = zstandard.train_dictionary(DICTIONARY_BYTES, samples)  # pyrefly: ignore[bad-argument-type]
        about = f"level {LEVEL}, dictionary of {len(trained.as_bytes()):,} bytes"
    except zstandard.ZstdError:  # too little text to train one
        trained, about = None, f"level {LEVEL}, too little text for a dictionary"
    packer = zstandard.ZstdCompressor(LEVEL, trained, write_content_size=False, write_dict_id=False)
    prefix = b"".join(training)[-PREFIX_BYTES:]
    window = max(10, (len(prefix) + len(text)).bit_length())
    setting = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=min(27, window), write_content_size=0, write_dict_id=0
    )
    before = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    prefixed = zstandard.ZstdCompressor(dict_data=before, compression_params=setting)
    return {
        "zstd, each": (8.0 * sum(len(packer.compress(each)) - MAGIC_BYTES for each in heldout), about),
        "zstd, whole": (8.0 * (len(packer.compress(text)) - MAGIC_BYTES), about),
        "zstd, prefixed": (
            8.0 * (len(prefixed.compress(text)) - MAGIC_BYTES),
            f"level {LEVEL}, after {len(prefix):,} bytes of training",
        ),
    }


def _ngram(
    training: Sequence[Ids], heldout: Sequence[Ids], texts: Sequence[bytes], unseen: Sequence[bytes], vocab_size: int
) -> dict[str, tuple[float, str]]:
    as_bytes = [_as_bytes(text) for text in texts]
    fitted = {
        "token": (training, heldout, vocab_size, TOKEN_ORDER),
        "byte": (as_bytes, [_as_bytes(text) for text in unseen], 258, BYTE_ORDER),
    }
    tuned: dict[tuple[str, int], float] = {}
    kept = max(1, len(texts) // 20)
    sizes = np.cumsum([len(text) for text in texts])
    few = max(kept + 1, int(np.searchsorted(sizes, TUNING_BYTES)) + 1)  # documents that tuning looks at
    for unit, (documents, _, symbols, order) in fitted.items():
        if len(documents) < 2:
            tuned[unit, order] = 0.0
            continue
        scores = NGrams(documents[kept:few], symbols, order).log2(documents[:kept]).sum(axis=1)
        tuned |= {(unit, index): -float(score) for index, score in enumerate(scores, 1)}
    unit, order = min(tuned, key=tuned.__getitem__)
    documents, scored, symbols, _ = fitted[unit]
    bits = -float(NGrams(documents, symbols, order).log2(scored)[-1].sum())
    tuning_bytes = max(1, sum(len(text) for text in texts[:kept]))
    tried = ", ".join(
        f"{name} {min(v for (u, _), v in tuned.items() if u == name) / tuning_bytes:.3f}" for name in fitted
    )
    detail = (
        f"modified Kneser-Ney, {order} {unit}s long, discounts from counts; chosen among 1 to {TOKEN_ORDER} tokens and "
        f"1 to {BYTE_ORDER} bytes on training documents kept apart (best: {tried} bits per byte)"
    )
    return {"n-gram": (bits, detail)}


def _as_bytes(text: bytes) -> NDArray[np.int64]:
    return np.array([_BOS_BYTE, *text, _EOS_BYTE], np.int64)


def write_baselines(corpus: Corpus, found: Sequence[Baseline]) -> None:
    """Keep the figures beside the corpus, for its report; DataError when they cannot be written."""
    text = json.dumps([asdict(each) for each in found], ensure_ascii=False, indent=2)
    replace_text(corpus.path / NAME, text + "\n")


def read_baselines(corpus: Path) -> list[Baseline]:
    """The figures that were kept in a corpus's directory, none where none were; DataError when the file is damaged."""
    path = corpus / NAME
    if not path.exists():
        return []
    try:
        return [from_mapping(Baseline, each, str(path)) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, ConfigError) as error:
        raise DataError(f"{path}: cannot be read: {error}; tapwater data baselines writes it anew") from None
