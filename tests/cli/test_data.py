"""`tapwater data`: from a file to a corpus and its report, and what is said when it cannot be."""

import json
import random
import re
from pathlib import Path

import pytest

from tapwater.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(["data", *arguments])
    return int(exited.value.code or 0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("data")
    words = random.Random(0)
    known = ["".join(words.choices("abcdefgh", k=6)) for _ in range(120)]
    rows = []
    for number in range(80):
        names = " ".join(words.choice(known) for _ in range(40))
        rows.append({"text": f"Page {number}, for readers of <pages>. It says: {names}. That is all there is."})
    rows.append({"text": "too short"})
    (home / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = home / "corpus.toml"
    path.write_text(
        f'directory = "{home}/corpus"\n[[sources]]\nname = "pages"\nkind = "jsonl"\npaths = ["{home}/pages.jsonl"]\n'
        'licence = "CC0-1.0"\n[tokenizer]\nvocab_size = 512\n'
        '[duplicates]\nnear = "none"\n[heldout]\nshare = 0.2\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def corpus(recipe: Path) -> Path:
    assert run("build", str(recipe), "tokenizer.vocab_size=520", f"directory={recipe.parent}/other") == 0
    return recipe.parent / "other"


def test_a_build_is_shown(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", str(corpus), "--verify") == 0
    shown = capsys.readouterr().out
    assert "520 tokens" in shown and "CC0-1.0 100%" in shown and "too_short" in shown
    assert run("show", str(corpus), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    [source] = facts["sources"]
    split = {name: sum(each["num_documents"] for each in source[name]["shards"]) for name in ("train", "heldout")}
    assert sum(split.values()) == 80 and split["heldout"] > 0
    assert source["dropped"]["too_short"]["num_documents"] == 1
    assert facts["config"]["tokenizer"]["vocab_size"] == 520


def test_baselines_are_printed_kept_and_in_the_report(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("baselines", str(corpus), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["method"] for each in found] == ["zstd, each", "zstd, whole", "zstd, prefixed", "n-gram"]
    pytest.importorskip("matplotlib")
    assert run("report", str(corpus)) == 0
    page = (corpus / "report.html").read_text(encoding="utf-8")
    assert f"{found[-1]['bits_per_byte']:.3f}" in page
    assert "&lt;pages&gt;" in page and "<pages>" not in page and "too short" in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page) and "<script" not in page


def test_what_cannot_be_done_is_one_line(recipe: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", str(recipe), f"directory={corpus}") == 1
    assert "is there already" in capsys.readouterr().err
    assert run("build", str(recipe), "tokenizer.vocab_sise=520") == 1
    assert "did you mean 'vocab_size'" in capsys.readouterr().err
    assert run("show", str(recipe.parent)) == 1
    assert "no finished corpus" in capsys.readouterr().err


def test_an_interrupted_build_says_that_it_starts_over(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partial = recipe.parent / "again.partial"
    (partial / "work").mkdir(parents=True)
    assert run("build", str(recipe), f"directory={recipe.parent}/again") == 0
    assert "again.partial is of a build that was interrupted" in capsys.readouterr().err
    assert not partial.exists()
