"""`tapwater report`: the page of a run that goes on, or is over."""

import json
from pathlib import Path

import pytest

from cli.test_train_report import write
from tapwater.cli import main
from tiny_corpus import random_documents, write_corpus


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main(["report", *map(str, arguments)])
    return int(exited.value.code or 0)


def test_a_run_gets_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "run", 3)
    assert run(tmp_path / "run") == 0
    assert "3 steps" in (tmp_path / "run" / "report.html").read_text()
    assert run(tmp_path / "nowhere") == 1
    assert "is this the directory of a run?" in " ".join(capsys.readouterr().err.split())


def test_the_corpus_the_run_was_told_gives_the_baselines(tmp_path: Path) -> None:
    write(tmp_path / "run", 20)
    corpus = write_corpus(tmp_path / "corpus", {"code": random_documents(9, 20, 0)})
    (corpus.path / "baselines.json").write_text(
        '[{"source": "code", "method": "zstd", "bits_per_byte": 3.5, "num_bytes": 9, "detail": ""}]'
    )
    settled = {"config": {"data": {"corpus": str(corpus.path)}}, "corpus": corpus.fingerprint}
    (tmp_path / "run" / "run.json").write_text(json.dumps(settled))
    assert run(tmp_path / "run") == 0
    assert "+0.500" in (tmp_path / "run" / "report.html").read_text()

    del settled["corpus"]  # as older runs wrote it
    (tmp_path / "run" / "run.json").write_text(json.dumps(settled))
    assert run(tmp_path / "run") == 0
    assert "+0.500" in (tmp_path / "run" / "report.html").read_text()

    settled["corpus"] = "of text that lay there before"
    (tmp_path / "run" / "run.json").write_text(json.dumps(settled))
    assert run(tmp_path / "run") == 0
    assert "+0.500" not in (tmp_path / "run" / "report.html").read_text()
    assert run(tmp_path / "run", "--corpus", corpus.path) == 0
    assert "+0.500" in (tmp_path / "run" / "report.html").read_text()
