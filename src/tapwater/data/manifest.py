"""What a corpus says of itself: manifest.json, written last."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tapwater.config.parse import from_mapping
from tapwater.errors import ConfigError, DataError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class ShardRecord:
    """A file of tokens and its index; `file` is relative to the corpus, the index is beside it as .idx.npy."""

    file: str
    num_documents: int
    num_tokens: int
    num_bytes: int  # of text, UTF-8
    sha256: str
    index_sha256: str

    @property
    def index_file(self) -> str:
        return self.file.removesuffix(".bin") + ".idx.npy"


@dataclass(frozen=True)
class SplitRecord:
    """The shards of a source in one split, and their sums."""

    shards: tuple[ShardRecord, ...] = ()

    @property
    def num_documents(self) -> int:
        return sum(each.num_documents for each in self.shards)

    @property
    def num_tokens(self) -> int:
        return sum(each.num_tokens for each in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(each.num_bytes for each in self.shards)


@dataclass(frozen=True)
class Amount:
    """Documents, and the UTF-8 bytes of their texts."""

    num_documents: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class SourceRecord:
    """A part of the corpus: what is kept of it under which licences, and what was dropped for which reasons."""

    name: str
    train: SplitRecord
    heldout: SplitRecord
    licences: Mapping[str, int] = field(default_factory=dict)  # bytes kept under each
    languages: Mapping[str, int] = field(default_factory=dict)  # bytes kept in each
    dropped: Mapping[str, Amount] = field(default_factory=dict)
    infilling: int = 0  # training documents rearranged for fill-in-the-middle
    suffix_first: int = 0  # those of them whose suffix comes before the prefix

    def split(self, split: Split) -> SplitRecord:
        return self.train if split == "train" else self.heldout


@dataclass(frozen=True)
class Manifest:
    """The whole file. `dtype` is the integer that holds a token, little-endian."""

    format: int
    tapwater: str  # version that built it
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    tokenizer: Mapping[str, str]  # sha256 of each of its files
    sources: tuple[SourceRecord, ...]
    config: dict = field(default_factory=dict)  # what `tapwater data build` was told

    @property
    def fingerprint(self) -> str:
        """A hash of tokenizer and tokens: equal for equal corpora, wherever they lie and whoever built them."""
        tokens = [(each.name, split, s.sha256, s.index_sha256)
                  for each in self.sources for split in SPLITS for s in each.split(split).shards]  # fmt: skip
        return hashlib.sha256(json.dumps([dict(self.tokenizer), tokens], sort_keys=True).encode()).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json; whoever calls has written all else."""
    text = json.dumps(asdict(manifest), ensure_ascii=False, indent=2)
    (directory / NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a corpus; DataError when there is none or it is not one this version reads."""
    path = directory / NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{directory}: no finished corpus, it has no {NAME}; tapwater data build makes one") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if isinstance(fields, dict) and fields.get("format") != FORMAT:
        raise DataError(f"{path}: format {fields.get('format')!r}, this version reads {FORMAT}; build the corpus anew")
    try:
        return from_mapping(Manifest, fields, str(path))
    except ConfigError as error:
        raise DataError(str(error)) from None


def sha256_of(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
