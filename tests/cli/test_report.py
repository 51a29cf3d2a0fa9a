"""The report is one file, complete, readable by a screen reader, refused with a hint where matplotlib is missing."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import tapwater.cli
from tapwater.cli import main


def write(path: Path, *more: str) -> int:
    arguments = ["plan", "serve", "deepseek-v2", "--machine", "h800", "--html", str(path), *more]
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    return int(exited.value.code or 0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write(path, "--compare", "cache=6bit", "--compare", "machine=rtx-4090") == 0
    return path.read_text(encoding="utf-8")


def test_it_is_one_file(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page) and "url(http" not in page and "<script" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', page):
        assert used in ids


def test_plots_have_words_for_them_and_take_the_pages_colour(page: str) -> None:
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawn) == 6
    for each in drawn:
        element = ElementTree.fromstring(each)
        assert element.attrib["role"] == "img" and len(element.attrib["aria-label"]) > 30
        assert "currentColor" in each and "#0a0b0c" not in each


def test_every_figure_has_its_source(page: str) -> None:
    for each in ("Predicted against measured", "How far to trust it", "Sources of the hardware", "Formulas"):
        assert f"<h2>{each}" in page, each
    for each in (
        "cache=6bit",
        "machine=rtx-4090: cannot: no layout on",
        "section 3.2.3",
        "DeepSeek-V2, generation",
        "rates as published",
        "assumed: the batch",
    ):
        assert each in page, each


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("tapwater.cli.report", "tapwater.cli.report_plots"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(tapwater.cli, name.rpartition(".")[2], raising=False)
    assert write(tmp_path / "report.html") == 1
    assert "pip install 'tapwater[report]'" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
