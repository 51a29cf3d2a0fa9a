"""What `tapwater needle` prints, writes and refuses, with a scripted model."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evals.test_needle import HAYSTACK, Reader
from tapwater.cli import main
from tapwater.engine import SamplingParams
from tapwater.llm import Completion
from tapwater.text import Tokenizer
from training import make_corpus

verb = importlib.import_module("tapwater.cli.needle")


class Scripted(Reader):
    computed_by = "a script"
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scripted:
    scripted = Scripted(window=600)
    monkeypatch.setattr(verb, "load", lambda model, run: scripted)
    (tmp_path / "hay.txt").write_text(HAYSTACK)
    return scripted


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main(["needle", *map(str, arguments)])
    return int(exited.value.code or 0)


def test_a_table_a_file_and_a_page(llm: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "needle.json", tmp_path / "needle.html"
    written = ("--output", out, "--report", page)
    asked = ("--haystack", tmp_path / "hay.txt", "--lengths", "512,2048", "--depths", "0,1", "--trials", 2)
    assert run(*asked, *written) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["depth", "512", "2,048"], ["0%", "2/2", "0/2"], ["100%", "2/2", "2/2"]]
    facts = json.loads(out.read_text())
    assert [each["exact"] for each in facts["cells"]] == [1.0, 1.0, 0.0, 1.0]
    missed = facts["cells"][2]["trials"][0]
    assert missed["answer"] == " none" and not missed["exact"] and missed["prompt_tokens"] == 2048 - 16
    assert missed["key"] in page.read_text()
    assert llm.closed
    assert run(*asked, *written) == 1  # a result is never replaced
    assert "is there already" in capsys.readouterr().err


def test_an_interrupted_test_keeps_the_cells_it_has(
    llm: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = llm.generate

    def stopped(prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        if len(llm.prompts) == 3:
            raise KeyboardInterrupt
        return generate(prompts, params)

    monkeypatch.setattr(llm, "generate", stopped)
    out, page = tmp_path / "needle.json", tmp_path / "needle.html"
    asked = ("--haystack", tmp_path / "hay.txt", "--lengths", "512,1024", "--depths", "0,1", "--trials", 1)
    assert run(*asked, "--output", out, "--report", page) == 130
    found = capsys.readouterr()
    assert [line.split() for line in found.out.splitlines()][2] == ["100%", "1/1", "-"]
    assert "stopped after 3 of 4 cells" in found.err
    facts = json.loads(out.read_text())
    assert len(facts["cells"]) == 3 and not facts["is_whole"] and not page.exists() and llm.closed


def test_lengths_beyond_the_model_are_named(llm: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--haystack", tmp_path / "hay.txt", "--lengths", "512,5000") == 1
    assert "lengths 5000 are more than the 4096 tokens" in " ".join(capsys.readouterr().err.split())
    assert run("--haystack", tmp_path / "hay.txt", "--lengths", "512;5000") == 1
    assert "'512;5000' is no number" in capsys.readouterr().err


def test_a_corpus_gives_its_held_out_documents(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    text = verb.read_haystack(corpus.path)
    tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
    assert tokenizer.decode(corpus.document("heldout", "prose", 5).tolist()) in text
    assert tokenizer.decode(corpus.document("train", "prose", 5).tolist()) not in text
