"""From a configuration to a corpus: clean text, a vocabulary, shards, and the manifest last."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path

from tapwater.config.corpus import CorpusConfig
from tapwater.data.clean import Cleaned, clean, room
from tapwater.data.document import Document
from tapwater.data.encode import Encoder, ToEncode
from tapwater.data.fim import Order, is_chosen, part_lengths, parts_of
from tapwater.data.lock import NAME as LOCK
from tapwater.data.lock import locked
from tapwater.data.manifest import (
    FORMAT,
    NAME,
    SPLITS,
    Amount,
    Manifest,
    SourceRecord,
    Split,
    SplitRecord,
    sha256_of,
    write_manifest,
)
from tapwater.data.permutation import hashed
from tapwater.data.shards import ShardWriter, token_dtype
from tapwater.data.tally import KEPT, Tally
from tapwater.data.tokenizer_training import reuse_tokenizer, train_tokenizer
from tapwater.errors import DataError

TALLY = "tally.json"  # what became of every document, with samples
BATCH_CHARS = 4_000_000  # encoded at a time
PROBES = 200  # documents by which tokenizer libraries are compared
_HELDOUT, _SAMPLE = 1, 2  # draws of one document that are independent of each other
_OWN = {"work", "tokenizer", *SPLITS, TALLY, NAME, LOCK}  # what a build may have left behind

Progress = Callable[[str, int, int], None]  # stage, documents, bytes of text


def partial_directory(config: CorpusConfig) -> Path:
    """Where a corpus lies while it is built, and stays when that is interrupted."""
    directory = Path(config.directory)
    return directory.with_name(directory.name + ".partial")


def build(config: CorpusConfig, progress: Progress) -> Path:
    """Build the corpus `config` describes and return its directory, which appears whole.

    An interrupted build left `<directory>.partial` behind; it is removed and all is done again. DataError when the
    directory is there already, when another process builds it, when no document is kept, or when fill-in-the-middle is
    asked of a tokenizer without its marks.
    """
    directory, partial = Path(config.directory), partial_directory(config)
    config = replace(config, directory=str(directory))  # without a slash at its end
    if directory.exists():
        raise DataError(f"{directory}: is there already; remove it or give another directory=")
    with room(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with room(partial), locked(partial):
        _clear(partial)
        _fill(partial, config, progress)
        (partial / LOCK).unlink()
        partial.rename(directory)
    return directory


def _fill(partial: Path, config: CorpusConfig, progress: Progress) -> None:
    if config.tokenizer.reuse is not None:  # before hours go into the text
        reuse_tokenizer(Path(config.tokenizer.reuse), partial / "tokenizer")
        _open_encoder(config, partial, [])
    cleaned = clean(config, progress)
    if not cleaned.tally.total(KEPT)[0]:
        raise DataError(f"{config.directory}: no document of the sources is kept: {_dropped(cleaned)}")
    if config.tokenizer.vocab_size is not None:
        train_tokenizer(_sample(config, cleaned, progress), config.tokenizer.vocab_size, partial / "tokenizer")
    encoder = _open_encoder(config, partial, [each.text for each in islice(cleaned, PROBES)])
    sources = _write_shards(config, cleaned, encoder, partial, progress)
    (partial / TALLY).write_text(json.dumps(cleaned.tally.as_json(), ensure_ascii=False) + "\n", encoding="utf-8")
    cleaned.remove()
    manifest = Manifest(
        format=FORMAT,
        tapwater=version("tapwater"),
        dtype="uint16" if token_dtype(encoder.vocab_size).itemsize == 2 else "uint32",
        vocab_size=encoder.vocab_size,
        bos_token_id=encoder.bos_token_id,
        eos_token_id=encoder.eos_token_id,
        tokenizer={each.name: sha256_of(each) for each in sorted((partial / "tokenizer").iterdir())},
        sources=sources,
        config=asdict(config),
    )
    write_manifest(partial, manifest)


def key_of(document: Document) -> int:
    """The number a document is drawn by: a hash of its text, so that no draw depends on its place or path."""
    digest = hashlib.blake2b(document.text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def split_of(key: int, share: float, seed: int) -> Split:
    """Which split the document of `key` is in: the same in every build with this seed that has it."""
    return "heldout" if hashed(seed, _HELDOUT, key) < share * 2**64 else "train"


def _clear(partial: Path) -> None:
    foreign = [each.name for each in partial.iterdir() if each.name not in _OWN]
    if foreign:
        raise DataError(f"{partial}: holds {foreign[0]}, which no build made; remove it or give another directory=")
    for each in partial.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        elif each.name != LOCK:
            each.unlink()


def _dropped(cleaned: Cleaned) -> str:
    reasons = {reason for counts in cleaned.tally.counts.values() for reason in counts}
    return ", ".join(f"{cleaned.tally.total(each)[0]} {each}" for each in sorted(reasons)) or "none was found"


def _open_encoder(config: CorpusConfig, partial: Path, probes: Sequence[str]) -> Encoder:
    encoder = Encoder.open(partial / "tokenizer", probes)
    rearranging = config.fim.rate > 0 and any(each.fim for each in config.sources)
    if rearranging and encoder.fim is None:
        raise DataError("fim: the reused tokenizer has no fill-in-the-middle tokens; set fim.rate=0 or train one")
    return encoder


def _sample(config: CorpusConfig, cleaned: Cleaned, progress: Progress) -> Iterator[str]:
    """Texts of training documents drawn from all sources, `sample_bytes` of them at the most."""
    wanted = config.tokenizer.sample_bytes
    share = wanted / max(1, cleaned.tally.total(KEPT)[1])
    num_documents = num_bytes = 0
    for document in cleaned:
        key = key_of(document)
        chosen = hashed(config.seed, _SAMPLE, key) < share * 2**64
        if not chosen or split_of(key, config.heldout.share, config.seed) == "heldout":
            continue
        if num_bytes + document.num_bytes > wanted:
            continue
        num_documents, num_bytes = num_documents + 1, num_bytes + document.num_bytes
        progress("training the tokenizer", num_documents, num_bytes)
        yield document.text


def _write_shards(
    config: CorpusConfig, cleaned: Cleaned, encoder: Encoder, corpus: Path, progress: Progress
) -> tuple[SourceRecord, ...]:
    rates = {each.name: config.fim.rate if each.fim else 0.0 for each in config.sources}
    records = {each.name: SourceRecord(each.name, SplitRecord(), SplitRecord()) for each in config.sources}
    num_documents = num_bytes = 0
    for source, documents in groupby(cleaned, key=lambda each: each.source):
        orders: Counter[Order | None] = Counter()
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    ShardWriter(corpus, split, source, encoder.vocab_size, config.shards.max_tokens)
                )
                for split in SPLITS
            }
            for batch in _batches(documents):
                orders.update(_write(batch, config, rates[source], encoder, writers))
                num_documents += len(batch)
                num_bytes += sum(each.num_bytes for each in batch)
                progress("encoding", num_documents, num_bytes)
        train, heldout = (writers[split].record for split in SPLITS)
        infilling, suffix_first = orders["psm"] + orders["spm"], orders["spm"]
        records[source] = replace(
            records[source], train=train, heldout=heldout, infilling=infilling, suffix_first=suffix_first
        )
    return tuple(_counted(record, cleaned.tally) for record in records.values())


def _write(
    batch: Sequence[Document], config: CorpusConfig, rate: float, encoder: Encoder, writers: Mapping[Split, ShardWriter]
) -> list[Order | None]:
    """Encode documents of one source into their splits; the order of each. Held-out ones are never rearranged."""
    keys = [key_of(each) for each in batch]
    splits = [split_of(key, config.heldout.share, config.seed) for key in keys]
    asked: list[tuple[Split, ToEncode]] = []
    for each, key, split in zip(batch, keys, splits, strict=True):
        asked += [(split, part) for part in _parts(each.text, key, rate if split == "train" else 0.0, config)]
    encoded = encoder.encode([part for _, part in asked], config.seed, config.fim.short_share, config.fim.spm_share)
    for (split, part), (tokens, _) in zip(asked, encoded, strict=True):
        writers[split].add(tokens, len(part.text.encode()))
    return [order for _, order in encoded]


def _parts(text: str, key: int, rate: float, config: CorpusConfig) -> list[ToEncode]:
    """A document as it is, or what is rearranged part by part because it is too long to be so as a whole."""
    most = config.fim.part_chars
    if most is None or len(text) <= most or not is_chosen(key, rate, config.seed):
        return [ToEncode(text, key, rate)]
    lengths = part_lengths(key, config.fim.part_chars_least or most, most, config.seed)
    return [ToEncode(part, hashed(key, number) >> 1, 1.0) for number, part in enumerate(parts_of(text, lengths))]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARS:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def _counted(record: SourceRecord, tally: Tally) -> SourceRecord:
    counts = tally.counts.get(record.name, {})
    dropped = {why: Amount(each.num_documents, each.num_bytes) for why, each in counts.items() if why != KEPT}
    licences, languages = tally.licences.get(record.name, {}), tally.languages.get(record.name, {})
    return replace(record, licences=licences, languages=languages, dropped=dropped)
