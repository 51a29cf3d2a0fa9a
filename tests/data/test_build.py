"""A small corpus from text to shards: repeatable, split by text, infilling that can be undone, nothing half done."""

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tapwater.config.corpus import CorpusConfig, FimSection, HeldoutSection, SourceSection, TokenizerSection
from tapwater.data import build as building
from tapwater.data.build import build, key_of, split_of
from tapwater.data.corpus import Corpus
from tapwater.data.document import Document
from tapwater.data.replacing import replace_text
from tapwater.data.tokenizer_training import SPECIAL_TOKENS
from tapwater.errors import ConfigError, DataError
from tapwater.text import Tokenizer
from tapwater.train.evaluate import Marks, original_text

ODD = "if x == '<｜end▁of▁sentence｜>':  # 日本語 12345\n\treturn \"<｜fim▁hole｜>\"\n"


class Texts:
    """What `clean` gives, without its filters."""

    def __init__(self, documents: list[Document]) -> None:
        from tapwater.data.tally import Tally

        self.tally, self.documents = Tally(), documents
        for document in documents:
            self.tally.keep(document)

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)

    def remove(self) -> None:
        pass


def documents() -> list[Document]:
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefgh"), 6)) for _ in range(150)]
    words += ["def", "return", "=", "(", ")", ":", "\n    ", "你好", "世界", "1984"]
    bodies = [" ".join(generator.choice(words, 60)) + f"\n{number}" for number in range(60)] + [ODD]
    code = [Document(text, "code", f"c{n}", "MIT", ".py") for n, text in enumerate(bodies)]
    prose = [Document(f"The {n}th page of a book. " * 5, "prose", f"p{n}", "CC0-1.0", "en") for n in range(30)]
    return code + prose


def config(directory: Path, **changes: object) -> CorpusConfig:
    sources = (
        SourceSection("code", "source", ("unused",), "MIT", fim=True),
        SourceSection("prose", "text", ("unused",), "CC0-1.0"),
    )
    base = CorpusConfig(
        str(directory), sources, TokenizerSection(vocab_size=512), heldout=HeldoutSection(0.2), fim=FimSection(0.5)
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def quiet(stage: str, num_documents: int, num_bytes: int) -> None:
    pass


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[Document]:
    found = documents()
    monkeypatch.setattr(building, "clean", lambda config, progress: Texts(found))
    return found


def decoded(corpus: Corpus) -> dict[str, tuple[str, str, bool]]:
    """Text -> split, source, rearranged; of every document, put back in reading order by its marks."""
    tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
    found = {}
    for split in ("train", "heldout"):
        for source in corpus.sources:
            for number in range(corpus.num_documents(split, source)):
                ids = corpus.document(split, source, number).tolist()
                assert (ids[0], ids[-1]) == (0, 1) and 0 not in ids[1:] and 1 not in ids[:-1]
                body, rearranged = ids[1:-1], 2 in ids
                if rearranged:
                    hole, end = body.index(3), body.index(4)
                    assert body[0] == 2
                    body = body[1:hole] + body[end + 1 :] + body[hole + 1 : end]
                text = b"".join(tokenizer.token_bytes(each) for each in body).decode()
                assert corpus.document_bytes(split, source, number) == len(text.encode())
                found[text] = (split, source, rearranged)
    return found


def test_every_document_is_there_once_and_only_training_code_is_rearranged(
    texts: list[Document], tmp_path: Path
) -> None:
    stages: list[str] = []
    corpus = Corpus.open(build(config(tmp_path / "c"), lambda stage, *_: stages.append(stage)))
    corpus.verify()
    found = decoded(corpus)
    assert {each.text: each.source for each in texts} == {text: source for text, (_, source, _) in found.items()}
    rearranged = [(split, source) for split, source, fim in found.values() if fim]
    assert set(rearranged) == {("train", "code")} and 15 <= len(rearranged) <= 40
    assert corpus.manifest.sources[0].infilling == len(rearranged)
    assert 5 <= sum(split == "heldout" for split, _, _ in found.values()) <= 35
    assert corpus.manifest.sources[1].licences == {"CC0-1.0": corpus.manifest.sources[1].train.num_bytes
                                                   + corpus.manifest.sources[1].heldout.num_bytes}  # fmt: skip
    assert {"training the tokenizer", "encoding"} <= set(stages)
    assert not (tmp_path / "c.partial").exists()


def test_long_documents_are_rearranged_part_by_part(texts: list[Document], tmp_path: Path) -> None:
    lines = [f"line {number} of a long file\n" for number in range(200)]
    texts[:] = [Document("".join(lines), "code", "long", "MIT", ".py"), *texts]
    fim = FimSection(1.0, part_chars=500)
    corpus = Corpus.open(build(config(tmp_path / "c", fim=fim, heldout=HeldoutSection(0.0)), quiet))
    found = {text: fim for text, (_, source, fim) in decoded(corpus).items() if source == "code"}
    parts = [text for text in found if text.startswith("line ")]
    assert sorted("".join(parts).splitlines(keepends=True)) == sorted(lines) and len(parts) > 9
    assert all(len(part) <= 500 and found[part] for part in parts)
    assert corpus.manifest.sources[0].infilling == sum(found.values())


@pytest.mark.parametrize("part_chars", [None, 500])
def test_short_middles_of_a_build_are_lines_or_words(
    part_chars: int | None, texts: list[Document], tmp_path: Path
) -> None:
    lines = "".join(f"line {number} of a long file\n" for number in range(200))
    texts.insert(0, Document(lines, "code", "long", "MIT", ".py"))
    fim = FimSection(1.0, part_chars=part_chars, short_share=1.0)
    corpus = Corpus.open(build(config(tmp_path / "c", fim=fim, heldout=HeldoutSection(0.0)), quiet))
    tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
    numbers = range(corpus.num_documents("train", "code"))
    assert len(numbers) == 62 if part_chars is None else len(numbers) > 70
    for ids in (corpus.document("train", "code", number).tolist() for number in numbers):
        middle = tokenizer.decode(ids[ids.index(4) + 1 : -1])
        assert middle.strip() and middle == middle.rstrip() and middle.count("\n") <= 3


def test_parts_of_drawn_lengths_some_with_the_suffix_first(texts: list[Document], tmp_path: Path) -> None:
    lines = "".join(f"line {number} of a long file\n" for number in range(200))
    texts.insert(0, Document(lines, "code", "long", "MIT", ".py"))
    fim = FimSection(1.0, part_chars=500, part_chars_least=60, short_share=1.0, spm_share=0.4)
    corpus = Corpus.open(build(config(tmp_path / "c", fim=fim, heldout=HeldoutSection(0.0)), quiet))
    tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
    documents = [
        corpus.document("train", "code", number).tolist() for number in range(corpus.num_documents("train", "code"))
    ]
    marks = Marks(0, 1, 2, 3, 4)
    restored = [original_text(ids, tokenizer.decode, marks) for ids in documents]
    code = "".join(each.text for each in texts if each.source == "code")
    assert sorted("".join(restored)) == sorted(code) and set(lines.splitlines()) <= set("".join(restored).splitlines())
    lengths = sorted(len(each) for each in restored if each.startswith("line "))
    assert lengths[0] < 120 and lengths[-1] > 300 and len(lengths) > 15
    record = corpus.manifest.sources[0]
    assert record.infilling == len(documents)
    assert 0.25 * len(documents) < record.suffix_first < 0.55 * len(documents)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.4, 15, 35), (1.0, 61, 61)])
def test_documents_with_the_suffix_first_are_counted(
    share: float, least: int, most: int, texts: list[Document], tmp_path: Path
) -> None:
    fim = FimSection(1.0, short_share=1.0, spm_share=share)
    texts[:] = [each._replace(text="\n" + each.text) for each in texts]  # no middle begins there: no prefix is empty
    corpus = Corpus.open(build(config(tmp_path / "c", fim=fim, heldout=HeldoutSection(0.0)), quiet))
    first = [corpus.document("train", "code", number)[2] for number in range(corpus.num_documents("train", "code"))]
    record = corpus.manifest.sources[0]
    assert record.infilling == len(first) == 61
    assert record.suffix_first == first.count(3)  # <fim_hole>
    assert least <= record.suffix_first <= most


def test_the_rate_is_that_of_training_documents_whatever_is_held_out(texts: list[Document], tmp_path: Path) -> None:
    words = np.random.default_rng(3).integers(0, 10**6, (400, 40))
    texts[:0] = [
        Document(" ".join(map(hex, row)), "code", f"d{number}", "MIT", ".py") for number, row in enumerate(words)
    ]
    settings = config(tmp_path / "c", fim=FimSection(0.3), heldout=HeldoutSection(0.3))
    corpus = Corpus.open(build(settings, quiet))
    trained = corpus.num_documents("train", "code")
    assert 270 < trained < 380 and 0.2 < corpus.manifest.sources[0].infilling / trained < 0.4


def test_a_build_can_be_repeated_to_the_byte(texts: list[Document], tmp_path: Path) -> None:
    first, again = (Corpus.open(build(config(tmp_path / name), quiet)) for name in "ab")
    assert first.fingerprint == again.fingerprint
    assert Corpus.open(build(config(tmp_path / "c", seed=1), quiet)).fingerprint != first.fingerprint


def test_the_split_of_a_text_does_not_depend_on_what_else_is_there(texts: list[Document], tmp_path: Path) -> None:
    before = decoded(Corpus.open(build(config(tmp_path / "a"), quiet)))
    kept = [each for each in texts if each.name != "c3"]
    texts[:] = [Document("something new " * 20, "code", "new", "MIT", ".py"), *reversed(kept[:57]), *kept[57:]]
    after = decoded(Corpus.open(build(config(tmp_path / "b"), quiet)))
    assert all(after[each.text] == before[each.text] for each in kept)
    assert split_of(key_of(kept[0]), 0.0, 0) == "train" and split_of(key_of(kept[0]), 1.0, 0) == "heldout"


def test_the_tokenizer_is_read_by_others(texts: list[Document], tmp_path: Path) -> None:
    from transformers import AutoTokenizer  # takes seconds

    directory = build(config(tmp_path / "c"), quiet) / "tokenizer"
    own, other = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    assert [own.token_text(each) for each in range(6)] == list(SPECIAL_TOKENS)
    for text in ("def f(x):\n    return 1984\n", "你好，世界 e\u0301 🙂", ODD, ""):
        ids = own.encode(text)
        assert ids == other(text).input_ids and ids[0] == 0
        assert other.decode(ids[1:]) == text
    assert (other.bos_token_id, other.eos_token_id, other.pad_token) == (0, 1, SPECIAL_TOKENS[5])
    digits = [own.token_text(each) for each in own.encode("1984")[1:]]
    assert digits == ["1", "9", "8", "4"]


def test_a_tokenizer_can_be_reused_but_not_for_infilling_without_its_marks(
    texts: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(config(tmp_path / "a"), quiet)
    reused = TokenizerSection(reuse=str(first / "tokenizer"))
    again = Corpus.open(build(config(tmp_path / "b", tokenizer=reused), quiet))
    assert again.document("train", "code", 0).tolist() == Corpus.open(first).document("train", "code", 0).tolist()
    path = first / "tokenizer/tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("fim▁hole", "fim▁other"), encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"in-the-middle tokens; set fim\.rate=0"):
        patch.setattr(building, "clean", None)  # it is said before any text is read
        build(config(tmp_path / "c", tokenizer=reused), quiet)
    plain = Corpus.open(build(config(tmp_path / "c", tokenizer=reused, fim=FimSection(0.0)), quiet))
    assert plain.manifest.sources[0].infilling == 0


def test_what_is_there_is_not_overwritten_and_what_was_interrupted_starts_over(
    texts: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, num_documents: int, num_bytes: int) -> None:
        if stage == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(config(tmp_path / "c"), stop)
    assert not (tmp_path / "c").exists() and not (tmp_path / "c.partial/manifest.json").exists()
    build(config(tmp_path / "c"), quiet)
    with pytest.raises(DataError, match="c: is there already"):
        build(config(tmp_path / "c"), quiet)
    (tmp_path / "d.partial").mkdir()
    (tmp_path / "d.partial/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds thesis\.tex, which no build made"):
        build(config(tmp_path / "d"), quiet)


def test_too_little_text_for_the_vocabulary_is_an_error(texts: list[Document], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"makes only [0-9]+ tokens of vocab_size 60000"):
        build(config(tmp_path / "c", tokenizer=TokenizerSection(vocab_size=60000)), quiet)


def test_two_builds_of_one_corpus_do_not_meet(texts: list[Document], tmp_path: Path) -> None:
    def meet(stage: str, num_documents: int, num_bytes: int) -> None:
        with pytest.raises(DataError, match=r"c\.partial: another process is at work there"):
            build(config(tmp_path / "c"), quiet)

    Corpus.open(build(config(tmp_path / "c"), meet)).verify()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c"]
    assert not (tmp_path / "c" / "lock").exists()


@pytest.mark.parametrize("directory", [".", "/", "corpora/.."])
def test_a_corpus_has_a_name(directory: str) -> None:
    with pytest.raises(ConfigError, match="directory must end in a name"):
        replace(config(Path("c")), directory=directory)


@pytest.mark.parametrize("most", [0, 2_000, 20_000])  # at the work files, the tokenizer, the shards
def test_a_full_disk_is_one_error_and_leaves_no_corpus(texts: list[Document], tmp_path: Path, most: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(DataError, match=r"c\.partial.*: cannot write: File too large"):
            build(config(tmp_path / "c"), quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "c").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    replace_text(path, "first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DataError, match=r"report\.html: cannot write: File too large"):
            replace_text(path, "second" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "first" and [each.name for each in tmp_path.iterdir()] == ["report.html"]
