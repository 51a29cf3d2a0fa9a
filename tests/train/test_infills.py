"""Infills of a corpus as evaluations try them, with a stand-in that reads the answers from the held-out text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tapwater.config.corpus import CorpusConfig, FimSection, HeldoutSection, SourceSection, TokenizerSection
from tapwater.data.build import build
from tapwater.data.corpus import Corpus
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.text import Tokenizer
from tapwater.train import infills
from tapwater.train.infills import Infills, Tried
from training import make_config

HOLE, END = 3, 4
MODEL = cast(Transformer, None)  # `generate` is replaced


def make_corpus(path: Path, spm_share: float) -> Corpus:
    generator = np.random.default_rng(0)
    (path / "raw").mkdir(parents=True)
    for number in range(30):
        lines = [" ".join("".join(word) for word in generator.choice(list("abcdefgh"), (4, 6))) for _ in range(8)]
        (path / "raw" / f"{number}.py").write_text("\n".join(lines) + "\n")
    source = SourceSection("code", "source", (str(path / "raw"),), "CC0-1.0", fim=True)
    config = CorpusConfig(
        str(path / "corpus"), (source,), TokenizerSection(vocab_size=512), heldout=HeldoutSection(0.4),
        fim=FimSection(0.9, spm_share=spm_share),
    )  # fmt: skip
    return Corpus.open(build(config, lambda stage, documents, size: None))


class Answers:
    """Right ones to prompts of the orders in `right`, read in the held-out text; keeps every prompt."""

    def __init__(self, corpus: Corpus, right: set[str]) -> None:
        self.tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
        numbers = range(corpus.num_documents("heldout", "code"))
        self.texts = [self.tokenizer.decode(corpus.document("heldout", "code", each).tolist()) for each in numbers]
        self.right, self.prompts = right, list[list[int]]()

    def generate(self, model: Transformer, prompts: Sequence[list[int]], max_tokens: int, eos: int) -> list[list[int]]:
        self.prompts += prompts
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt: list[int]) -> list[int]:
        order = "spm" if prompt[2] == HOLE else "psm"
        hole, end = prompt.index(HOLE), prompt.index(END)
        before = prompt[end + 1 :] if order == "spm" else prompt[2:hole]
        prefix, suffix = self.tokenizer.decode(before), self.tokenizer.decode(prompt[hole + 1 : end])
        (text,) = (each for each in self.texts if prefix in each and suffix in each)
        middle = text[text.index(prefix) + len(prefix) : text.index(suffix)]
        assert middle
        return self.tokenizer.encode_part(middle if order in self.right else "wrong")


def tried(
    path: Path, monkeypatch: pytest.MonkeyPatch, spm_share: float, right: set[str], **evaluation: Any
) -> tuple[Tried, list[list[int]]]:
    corpus = make_corpus(path, spm_share)
    answers = Answers(corpus, right)
    monkeypatch.setattr(infills, "generate", answers.generate)
    settings = {"fim_documents": 5, **evaluation}
    model = {"max_position_embeddings": 1024, "vocab_size": 512}
    config = make_config(corpus, path / "run", model=model, data={"sequence_length": 1024}, evaluation=settings)
    return Infills(MODEL, corpus, config).try_all(), answers.prompts


@pytest.mark.parametrize(("right", "expected"), [({"psm"}, (1.0, 0.0)), ({"spm"}, (0.0, 1.0))])
def test_each_order_has_its_share(
    right: set[str], expected: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, prompts = tried(tmp_path, monkeypatch, 0.5, right)
    assert (found.exact, found.exact_spm) == expected and len(prompts) == 10
    for each in found.filled:
        assert each.wrote == (each.wanted if "psm" in right else "wrong")
        assert each.wrote_spm == (each.wanted if "spm" in right else "wrong")


def test_answers_are_kept_with_the_text_around_their_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = tried(tmp_path, monkeypatch, 0.5, set())
    texts = [path.read_text().strip() for path in (tmp_path / "raw").iterdir()]
    assert len(found.filled) == 5
    for each in found.filled:
        assert any(each.before + each.wanted + each.after in text for text in texts) and each.before and each.after
        assert len(each.before.splitlines()) <= 5 >= len(each.after.lstrip("\n").splitlines())


def test_an_order_the_corpus_has_not_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, prompts = tried(tmp_path, monkeypatch, 0.0, {"psm"})
    assert (found.exact, found.exact_spm) == (1.0, None) and {each.wrote_spm for each in found.filled} == {None}
    assert len(prompts) == 5 and all(each[2] != HOLE for each in prompts)


def test_prompts_are_as_long_as_the_context_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, long = tried(tmp_path / "long", monkeypatch, 0.5, {"psm"}, fim_max_tokens=40)
    found, short = tried(tmp_path / "short", monkeypatch, 0.5, {"psm"}, fim_max_tokens=40, fim_context=80)
    assert (found.exact, found.exact_spm) == (1.0, 0.0)
    assert {len(each) for each in short} == {40} and min(map(len, long)) > 80


def test_none_are_tried_where_none_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, prompts = tried(tmp_path, monkeypatch, 0.5, {"psm"}, fim_documents=0)
    assert found == Tried(None, None, ()) and not prompts


def test_middles_that_are_all_too_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"none of the first 5 held-out .* of at most fim_max_tokens 1 tokens to take out"
    ):
        tried(tmp_path, monkeypatch, 0.5, {"psm"}, fim_max_tokens=1)


def test_a_context_beyond_a_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"fim_context 1025 is longer than a row, data\.sequence_length 1024"):
        tried(tmp_path, monkeypatch, 0.5, {"psm"}, fim_context=1025)
