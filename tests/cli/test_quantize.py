"""`tapwater quantize`: what it prints, what it leaves, and how it goes on."""

import re
from pathlib import Path

import pytest

from checkpoint.packed_models import write, write_model
from cli.test_cli import run
from tapwater.checkpoint import PackedDirectory, load_packed
from tapwater.cli import quality
from tapwater.cli.quantize import SAMPLE
from tapwater.ops.quant import Format


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "llama-gqa")


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(quality, "is_built", lambda: False)
    elif not quality.is_built():
        pytest.skip("the kernels are not built here: no C++ compiler")
    return request.param


@pytest.mark.parametrize(
    ("format", "stored", "bits"),  # rows of 48 are padded to 64: a third more than 5, 8.5 and 16 bits
    [
        ("q4", "14 q4_min, 2 q8, 5 float32", 9.2),
        ("q8", "16 q8, 5 float32", 11.3),
        ("bf16", "16 bf16, 5 float32", 21.18),
    ],
)
def test_the_report(
    backend: str, format: str, stored: str, bits: float, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = model.parent / "packed"
    assert run("quantize", str(model), str(destination), "--format", format, "--tokens", "300") == 0
    out = capsys.readouterr().out
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines()[1:])
    assert out.startswith(f"{model} -> {destination}\n")
    size = PackedDirectory(destination).nbytes / 1e6
    assert f"-> {size:,.1f} MB" in lines["size"]
    assert float(lines["size"].split()[-4]) == pytest.approx(bits, abs=0.01)
    assert "requantised from F32 to" in lines["changed"]
    found = re.fullmatch(
        r"([\d.]+) -> ([\d.]+) \(([+-][\d.]+)%\) over (\d+) tokens of the built-in sample", lines["perplexity"]
    )
    assert found
    before, after, change = (float(found[index]) for index in (1, 2, 3))
    assert after == pytest.approx(before, rel={"q4": 0.1, "q8": 0.02, "bf16": 0.02}[format])
    assert change == pytest.approx(100 * (after / before - 1), abs=0.1)
    assert found[4] == str(300 - 2)  # windows of 256 and 44 tokens: the first of each is not predicted
    assert load_packed(destination, None).config.model_type == "llama"
    assert sorted(stored.split(", ")) == sorted(lines["arrays"].split(", "))


def test_a_finished_directory_is_measured_not_packed_again(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = write(model, model.parent / "packed", Format.Q8)
    written = (destination / "weights.tapwater").stat().st_mtime_ns
    assert run("quantize", str(model), str(destination), "--format", "q8", "--tokens", "20") == 0
    assert "over 19 tokens" in capsys.readouterr().out
    assert (destination / "weights.tapwater").stat().st_mtime_ns == written
    assert run("quantize", str(model), str(destination), "--format", "q4") == 1
    assert "exists already" in capsys.readouterr().err


def test_a_text_of_ones_own(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = model.parent / "text.txt"
    text.write_text("A text of my own: short, but long enough.")
    arguments = ["quantize", str(model), str(model.parent / "packed"), "--text", str(text)]
    assert run(*arguments) == 0
    assert "tokens of text.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"", [], "is too short to measure anything"),
        (b"\xff\xfe", [], "cannot be read as UTF-8 text"),
        (None, [], "cannot be read as UTF-8 text"),
        (b"enough text", ["--tokens", "1"], "--tokens must be at least 2"),
    ],
)
def test_a_text_that_cannot_be_scored_ends_before_the_work(
    content: bytes | None, options: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = model.parent / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert run("quantize", str(model), str(model.parent / "packed"), "--text", str(text), *options) == 1
    assert said in capsys.readouterr().err
    assert not list(model.parent.glob("packed*"))


def test_what_is_packed_already_cannot_be_packed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = write(model, model.parent / "packed")
    assert run("quantize", str(packed), str(model.parent / "again")) == 1
    assert "its original is needed" in capsys.readouterr().err


def test_a_damaged_result_is_reported(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = write(model, model.parent / "packed", Format.Q8)
    weights = destination / "weights.tapwater"
    raw = bytearray(weights.read_bytes())
    raw[1000] ^= 1
    weights.write_bytes(raw)
    assert run("quantize", str(model), str(destination), "--format", "q8") == 1
    assert "array embed_tokens.weight is damaged" in capsys.readouterr().err


def test_the_sample_is_text_of_some_length() -> None:
    assert 4000 < len(SAMPLE.read_text(encoding="utf-8")) < 8000
