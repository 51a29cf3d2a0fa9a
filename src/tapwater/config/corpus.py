"""The typed sections of a corpus build, one TOML file: where text comes from and what is kept of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Literal

from tapwater.config.parse import apply_override, from_mapping, read_toml
from tapwater.errors import ConfigError

SourceKind = Literal["text", "source", "jsonl", "parquet", "man", "doc"]


@dataclass(frozen=True)
class SourceSection:
    """One source of documents. Its files are read in the order of their names, so a build can be repeated exactly.

    Kinds: text (a file is a document of prose), source (a file is a document of program text), jsonl and parquet (a
    row is a document), man (manual pages), doc (a tree of /usr/share/doc).
    """

    name: str  # of its shards and of its weight in a mixture
    kind: SourceKind
    paths: tuple[str, ...]  # files, directories (all that is below) or glob patterns
    licence: str  # SPDX where there is one; what each file says for itself goes before it
    include: tuple[str, ...] = ()  # suffixes of the files that are read; empty: those of the kind
    exclude: tuple[str, ...] = ()  # glob patterns of names that are not read: "*.min.js", "*/tests/*"
    text_field: str = "text"  # jsonl, parquet
    languages: tuple[str, ...] = ()  # prose in another language is dropped ("en", "zh"); empty: any is kept
    fim: bool = False  # its documents may be rearranged for fill-in-the-middle
    # of .py and .pyi; trim: docstrings keep their first line, comments of three lines and more go, and so do files that
    # are no Python of this interpreter
    python_prose: Literal["keep", "trim"] = "keep"
    # text at the most, as it is after trimming; with a limit files are taken in a drawn order, not by name
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not all(each.isalnum() or each in "_-." for each in self.name) or self.name[0] in ".-":
            raise ConfigError(f"name must be letters, digits, '_', '-' and '.', got {self.name!r}")
        if not self.paths:
            raise ConfigError(f"{self.name}: paths is empty")
        if not self.licence:
            raise ConfigError(f'{self.name}: licence is empty; write "unknown" when it is')
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise ConfigError(f"{self.name}: limit_bytes must be at least 1, got {self.limit_bytes}")
        for suffix in self.include:
            if not suffix.startswith("."):
                raise ConfigError(f"{self.name}: include takes suffixes such as '.py', got {suffix!r}")
        if self.languages and self.kind == "source":
            raise ConfigError(f"{self.name}: program text has no language to expect")
        if self.python_prose == "trim" and self.kind != "source":
            raise ConfigError(f'{self.name}: python_prose = "trim" is for kind "source", not {self.kind!r}')
        if self.python_prose == "trim" and self.include and not {".py", ".pyi"} & set(self.include):
            raise ConfigError(f'{self.name}: python_prose = "trim" needs .py or .pyi in include')


@dataclass(frozen=True)
class FilterSection:
    """Thresholds of the filters in data/filters.py, which says where each rule was published.

    Sizes are characters, shares are of characters but where lines or words are named.
    """

    min_chars: int = 100
    max_chars: int = 1_000_000
    max_mean_line: int = 100  # of program text
    max_line: int = 1000  # of program text
    max_blob_share: float = 0.5  # in unbroken runs of digits and letters of base64 or hexadecimal
    min_alphanumeric_share: float = 0.25  # letters and digits of any script
    max_digit_share: float = 0.3
    max_repeated_line_share: float = 0.3  # lines of prose that were there before
    max_repeated_line_share_source: float = 0.7  # program text repeats braces and returns
    max_symbol_word_ratio: float = 0.1  # '#' and ellipses for each word of prose
    min_entropy_bits: float = 2.5  # of a byte in its document: below, the text is a pattern
    max_entropy_bits: float = 6.5  # above, it is packed data; of text in Latin letters only
    generated_marks: Literal["drop", "keep"] = "drop"  # program text whose first lines say that a program wrote it

    def __post_init__(self) -> None:
        if not 0 <= self.min_chars <= self.max_chars:
            raise ConfigError(f"min_chars {self.min_chars} must be between 0 and max_chars {self.max_chars}")
        for name in ("max_mean_line", "max_line"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        shares = ["max_blob_share", "min_alphanumeric_share", "max_digit_share"]
        for name in (*shares, "max_repeated_line_share", "max_repeated_line_share_source"):
            _share(self, name)
        if not 0 <= self.max_symbol_word_ratio < inf:
            raise ConfigError(f"max_symbol_word_ratio must be at least 0, got {self.max_symbol_word_ratio}")
        if not 0 <= self.min_entropy_bits <= self.max_entropy_bits <= 8:
            raise ConfigError("min_entropy_bits and max_entropy_bits must rise between 0 and 8")


@dataclass(frozen=True)
class DuplicatesSection:
    """Near-duplicates: documents whose sets of shingles have a Jaccard similarity of `threshold`; the first stays.

    A pair of similarity s is compared with probability 1 - (1 - s^r)^bands, r = num_permutations / bands. StarCoder
    (arXiv 2305.06161, section 3) took 0.7 with 256 permutations over 5-grams.
    """

    near: Literal["minhash", "none"] = "minhash"  # exact duplicates always go
    threshold: float = 0.7
    num_permutations: int = 128
    bands: int = 16
    shingle_words: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold must be above 0 and at most 1, got {self.threshold}")
        for name in ("num_permutations", "bands", "shingle_words"):
            if not 1 <= getattr(self, name) <= 1024:
                raise ConfigError(f"{name} must be between 1 and 1024, got {getattr(self, name)}")
        if self.num_permutations % self.bands:
            raise ConfigError(f"bands {self.bands} does not divide num_permutations {self.num_permutations}")


@dataclass(frozen=True)
class DecontaminationSection:
    """Documents that share `ngram_words` words in a row with an evaluation file go (as GPT-3, arXiv 2005.14165 C)."""

    files: tuple[str, ...] = ()  # .jsonl: every string of a row; any other: text. Also .gz and .zst
    ngram_words: int = 13

    def __post_init__(self) -> None:
        if not 2 <= self.ngram_words <= 64:
            raise ConfigError(f"ngram_words must be between 2 and 64, got {self.ngram_words}")


@dataclass(frozen=True)
class HeldoutSection:
    """Documents that are never trained on, drawn in every source."""

    share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"share must be at least 0 and below 1, got {self.share}")


@dataclass(frozen=True)
class TokenizerSection:
    """The vocabulary: trained on the corpus, or that of a directory of Hugging Face files."""

    vocab_size: int | None = None  # V2: 100,000 and control tokens
    reuse: str | None = None
    sample_bytes: int = 1_000_000_000  # text a vocabulary is trained on, drawn from all sources

    def __post_init__(self) -> None:
        if (self.vocab_size is None) == (self.reuse is None):
            raise ConfigError("give one of vocab_size (to train one) and reuse (a directory)")
        if self.vocab_size is not None and not 512 <= self.vocab_size <= 2**20:
            raise ConfigError(f"vocab_size must be between 512 and {2**20}, got {self.vocab_size}")
        if self.sample_bytes < 1:
            raise ConfigError(f"sample_bytes must be at least 1, got {self.sample_bytes}")


@dataclass(frozen=True)
class FimSection:
    """Fill-in-the-middle of the sources that ask for it: prefix, suffix, middle (PSM) or suffix first (SPM)."""

    rate: float = 0.1  # share of documents; V3: 0.1, DeepSeek-Coder-V2-Lite: 0.5
    # longer ones become parts, so that a row can hold prefix, suffix and middle; None: whole
    part_chars: int | None = None
    part_chars_least: int | None = None  # the most characters of a part are drawn from here to part_chars; None: not
    short_share: float = 0.0  # of the rearranged, the share cut around lines or words, as editors ask; others: anywhere
    spm_share: float = 0.0  # of the rearranged, the share with the suffix before the prefix

    def __post_init__(self) -> None:
        _share(self, "rate")
        _share(self, "short_share")
        _share(self, "spm_share")
        if self.part_chars is not None and self.part_chars < 1:
            raise ConfigError(f"part_chars must be at least 1, got {self.part_chars}")
        if self.part_chars_least is not None:
            if self.part_chars is None:
                raise ConfigError("part_chars_least needs part_chars, the most characters of any part")
            if not 1 <= self.part_chars_least <= self.part_chars:
                most, least = self.part_chars, self.part_chars_least
                raise ConfigError(f"part_chars_least must be between 1 and part_chars ({most}), got {least}")


@dataclass(frozen=True)
class ShardsSection:
    """The files tokens are written to."""

    max_tokens: int = 100_000_000  # of a shard; a longer document has one to itself

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(frozen=True)
class CorpusConfig:
    """Everything `tapwater data build` reads from its file."""

    directory: str  # the corpus; while it is built its files are in `<directory>.partial`
    sources: tuple[SourceSection, ...]
    tokenizer: TokenizerSection
    seed: int = 0  # of every draw
    filters: FilterSection = field(default_factory=FilterSection)
    duplicates: DuplicatesSection = field(default_factory=DuplicatesSection)
    decontamination: DecontaminationSection = field(default_factory=DecontaminationSection)
    heldout: HeldoutSection = field(default_factory=HeldoutSection)
    fim: FimSection = field(default_factory=FimSection)
    shards: ShardsSection = field(default_factory=ShardsSection)

    def __post_init__(self) -> None:
        if not self.directory:
            raise ConfigError("directory is empty")
        if Path(self.directory).name in ("", ".."):
            raise ConfigError(f"directory must end in a name, that of the corpus, got {self.directory!r}")
        if not self.sources:
            raise ConfigError("sources is empty: a corpus needs at least one [[sources]] table")
        names = Counter(source.name for source in self.sources)
        for name, uses in names.items():
            if uses > 1:
                raise ConfigError(f"sources: {uses} of them are named {name!r}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be between 0 and 2^63, got {self.seed}")


def load_corpus_config(path: Path, overrides: Sequence[str] = ()) -> CorpusConfig:
    """CorpusConfig from a TOML file and overrides, later ones winning: `section.key=value`, `directory=`, `seed=`.

    Raises ConfigError for a missing or malformed file, an unknown section or key (naming the nearest) or a wrong type.
    """
    values = read_toml(path)
    for override in overrides:
        if override.partition("=")[0] in ("directory", "seed"):
            apply_override({"corpus": values}, f"corpus.{override}")  # fields of the file itself
        else:
            apply_override(values, override)
    return from_mapping(CorpusConfig, values, str(path))


def resolve_placeholders(config: CorpusConfig, values: Mapping[str, str]) -> CorpusConfig:
    """The same build with `{name}` in the paths of sources and of evaluation files replaced by `values[name]`.

    The recipes use {stdlib} and {site_packages}, directories of a Python interpreter. Raises ConfigError for another.
    """
    sources = tuple(replace(each, paths=_filled(each.paths, values, each.name)) for each in config.sources)
    files = _filled(config.decontamination.files, values, "decontamination")
    return replace(config, sources=sources, decontamination=replace(config.decontamination, files=files))


def _filled(paths: tuple[str, ...], values: Mapping[str, str], where: str) -> tuple[str, ...]:
    filled = []
    for path in paths:
        for name, value in values.items():
            path = path.replace("{" + name + "}", value)
        if "{" in path:
            known = ", ".join("{" + name + "}" for name in values)
            raise ConfigError(f"{where}: {path} has an unknown placeholder; known are {known}")
        filled.append(path)
    return tuple(filled)


def _share(section: object, name: str) -> None:
    if not 0 <= getattr(section, name) <= 1:
        raise ConfigError(f"{name} must be between 0 and 1, got {getattr(section, name)}")
