"""`inspect` reproduces the numbers the reports publish."""

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoint.packed_models import write, write_model
from tapwater.checkpoint import PackedDirectory
from tapwater.cli import main
from tapwater.config import preset, to_hf


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["inspect", *arguments])
    out, err = capsys.readouterr()
    assert not exited.value.code, err
    return out


@pytest.fixture
def facts(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, Any]:
    return json.loads(inspect(capsys, name, "--json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deepseek-v2", "--context", "-5"], "--context must be between 1 and"),
        (["deepseek-v2", "--context", "0"], "--context must be between 1 and"),
        (["deepseek-v2", "--context", "999999999"], "the model's 163840"),
        (["deepseek_v2"], "did you mean 'deepseek-v2'"),
        (
            ["deepseek-v2", "--verify"],
            "--verify is for packed directories, as `tapwater quantize` makes them; deepseek-v2",
        ),
        (["DeepSeek-V2-Light"], "did you mean 'deepseek-v2-lite'"),
    ],
)
def test_what_cannot_be_inspected_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["inspect", *arguments])
    assert exited.value.code == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_directory_needs_only_its_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_hf(preset("deepseek-v3"))))
    facts = json.loads(inspect(capsys, str(tmp_path), "--json"))
    assert facts["parameters"]["total"] == 671_026_419_200


# Totals are exact; the report rounds activated parameters (V2: 21B, V2-Lite: 2.4B, V3: 37B, 16B: 2.8B).
PUBLISHED = [
    ("deepseek-v2", 235_741_434_880, "active_without_input_embedding", 21e9, 34_560),
    ("deepseek-v2-lite", 15_706_484_224, "active_without_input_embedding", 2.4e9, 15_552),
    ("deepseek-v3", 671_026_419_200, "active_without_input_embedding", 36.7e9, 35_136),
    ("deepseek-67b", 67_425_001_472, "active", 67.4e9, 194_560),
    ("deepseek-7b", 6_910_365_696, "active", 6.9e9, 245_760),
    ("deepseek-moe-16b", 16_375_728_128, "active", 2.8e9, 114_688),
]


@pytest.mark.parametrize(("name", "total", "convention", "activated", "kv_elements"), PUBLISHED)
def test_published_figures(
    facts: dict[str, Any], total: int, convention: str, activated: float, kv_elements: int
) -> None:
    assert facts["parameters"]["total"] == total
    assert sum(facts["parameters"]["by_part"].values()) == total
    assert facts["parameters"][convention] == pytest.approx(activated, rel=0.03)
    own = next(value for label, value in facts["kv_cache_per_token"].items() if label.startswith("this model"))
    assert own == {"elements": kv_elements, "bytes_bf16": 2 * kv_elements}


@pytest.mark.parametrize("name", ["deepseek-v2"])
def test_mla_against_gqa_and_mha(facts: dict[str, Any]) -> None:
    """Report Table 1: MLA caches as much as GQA with 2.25 groups."""
    own, gqa, mha = (each["elements"] for each in facts["kv_cache_per_token"].values())
    assert gqa == 2 * 8 * 128 * 60
    assert mha == 2 * 128 * 128 * 60
    assert own / (gqa / 8) == 2.25
    assert own / mha == pytest.approx(0.0176, abs=1e-4)


@pytest.mark.parametrize(("name", "gflops"), [("deepseek-v2", 155), ("deepseek-v3", 250)])
def test_training_flops(facts: dict[str, Any], gflops: float) -> None:
    """Table 2 of DeepSeek's ISCA 2025 paper, sequences of 4096."""
    assert facts["flops_per_token"]["context"] == 4096
    assert facts["flops_per_token"]["training"] / 1e9 == pytest.approx(gflops, rel=0.01)


def test_context_is_honoured(capsys: pytest.CaptureFixture[str]) -> None:
    def forward(context: int) -> float:
        out = inspect(capsys, "deepseek-67b", "--json", "--context", str(context))
        return json.loads(out)["flops_per_token"]["forward"]

    assert forward(3000) - forward(2000) == forward(2000) - forward(1000) > 0


def test_tables_show_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    out = inspect(capsys, "deepseek-v2-lite")
    for shown in ("27: 1 dense, 26 with experts", "15,706,484,224", "15,552", "31,104", "6 of 64 routed + 2 shared"):
        assert shown in out, shown


def test_every_form_of_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, smollm2_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_hf(preset("smollm2-135m"))))
    forms = ["smollm2-135m", str(config), str(smollm2_path)]
    counted = [json.loads(inspect(capsys, form, "--json")) for form in forms]
    assert all(each | {"model": ""} == counted[0] | {"model": ""} for each in counted)
    assert counted[0]["parameters"]["total"] == 134_515_008


def test_verify_reads_what_is_packed_and_finds_flipped_bytes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    packed = write(write_model(tmp_path / "model"), tmp_path / "packed")
    arrays = PackedDirectory(packed).manifest.arrays
    assert f"all {len(arrays)} arrays match their checksums" in inspect(capsys, str(packed), "--verify")
    assert json.loads(inspect(capsys, str(packed), "--verify", "--json"))["verified_arrays"] == len(arrays)
    weights = packed / "weights.tapwater"
    raw = bytearray(weights.read_bytes())
    raw[arrays[3].offset + 1] ^= 255
    weights.write_bytes(raw)
    assert "match" not in inspect(capsys, str(packed))  # unasked, no weights are read
    with pytest.raises(SystemExit) as exited:
        main(["inspect", str(packed), "--verify"])
    assert exited.value.code == 1
    out, err = capsys.readouterr()
    assert f"array {arrays[3].name} is damaged" in err and "quantize the model again" in err and not out


def test_verify_refuses_a_directory_that_is_not_packed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(SystemExit) as exited:
        main(["inspect", str(model), "--verify"])
    assert exited.value.code == 1
    assert f"--verify is for packed directories, as `tapwater quantize` makes them; {model}" in capsys.readouterr().err
