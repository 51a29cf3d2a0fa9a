"""Hugging Face directories that are damaged, incomplete or contradict themselves."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tapwater.checkpoint.hf import load_hf, save_hf
from tapwater.errors import CheckpointError, TapwaterError
from tiny import CONFIGS, tiny_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_hf(tiny_model("v2"), tmp_path / "model", shard_bytes=100_000)
    return tmp_path / "model"


def change_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """An edit of the first shard and of the index with it."""

    def apply(directory: Path) -> None:
        shard = min(directory.glob("*.safetensors"))
        tensors = load_file(shard)
        change(tensors)
        save_file(tensors, shard, {"format": "pt"})
        index = directory / "model.safetensors.index.json"
        raw = json.loads(index.read_text())
        others = {name: file for name, file in raw["weight_map"].items() if file != shard.name}
        raw["weight_map"] = others | dict.fromkeys(tensors, shard.name)
        index.write_text(json.dumps(raw))

    return apply


def edit_json(file: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        raw = json.loads((directory / file).read_text())
        change(raw)
        (directory / file).write_text(json.dumps(raw))

    return apply


INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of"


def truncate(directory: Path) -> None:
    shard = min(directory.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, f"{FIRST}.*truncated or damaged"),
        (lambda d: min(d.glob("*.safetensors")).write_bytes(b"nonsense"), f"{FIRST}.*truncated or damaged"),
        (lambda d: min(d.glob("*.safetensors")).write_bytes(b""), f"{FIRST}.*truncated or damaged"),
        (lambda d: min(d.glob("*.safetensors")).unlink(), f"{FIRST}.*no such file"),
        (lambda d: (d / "config.json").unlink(), "config.json: no such file"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda d: (d / INDEX).unlink(), "neither model.safetensors nor"),
        (edit_json(INDEX, lambda raw: raw.pop("weight_map")), "weight_map is missing"),
        (
            edit_json(INDEX, lambda raw: raw["weight_map"].update({"model.norm.weight": "../x"})),
            "not a .safetensors file",
        ),
        (edit_json(INDEX, lambda raw: raw["weight_map"].pop("model.norm.weight")), "norm.weight is not in model.safe"),
        (
            edit_json(INDEX, lambda raw: raw["weight_map"].update({"x": raw["weight_map"]["model.norm.weight"]})),
            "x is not in",
        ),
        (change_tensors(lambda t: t.update({"model.extra": torch.zeros(2)})), "model.extra not part of"),
        (change_tensors(lambda t: t.pop("model.embed_tokens.weight")), "model.embed_tokens.weight missing"),
        (
            change_tensors(lambda t: t.update({"model.embed_tokens.weight": torch.zeros(96, 63)})),
            r"model.embed_tokens.weight has shape \[96, 63\], the configuration says \[96, 64\]",
        ),
        (
            change_tensors(lambda t: t.update({"model.embed_tokens.weight": torch.zeros(96, 64, dtype=torch.int8)})),
            "int8",
        ),
        (edit_json("config.json", lambda raw: raw.update(vocab_size=97)), r"the configuration says \[97, 64\]"),
        (edit_json("config.json", lambda raw: raw.update(num_hidden_layers=4)), "model.layers.3.* missing"),
        (edit_json("config.json", lambda raw: raw.update(num_hidden_layers=2)), "model.layers.2.* not part of"),
        (edit_json("config.json", lambda raw: raw.update(quantization_config={"fmt": "e4m3"})), "quantization_config"),
    ],
)
def test_damage_is_one_clear_error(directory: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(directory)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_hf(directory)
    assert str(directory) in str(caught.value)


def test_random_damage_never_leaks_another_error(directory: Path) -> None:
    chance = random.Random(0)
    shard = min(directory.glob("*.safetensors"))
    whole = shard.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(8 + header)] = chance.randrange(256)
        shard.write_bytes(damaged if chance.random() < 0.7 else damaged[: chance.randrange(len(whole))])
        try:
            load_hf(directory)
        except TapwaterError:
            refused += 1
    assert refused > 100


def test_an_existing_directory_is_never_overwritten(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(CheckpointError, match="exists already"):
        save_hf(tiny_model("v2"), directory)
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own that may write no file over 50 kB: a full disk, as the libraries meet it."""
    script = f"""
import resource, signal
from pathlib import Path
from tapwater.checkpoint import save_hf
from tapwater.config import preset
from tapwater.errors import CheckpointError
from tapwater.model import Transformer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_hf(Transformer.random(preset("tiny"), 0), Path({str(tmp_path)!r}) / "model")
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_hf(tiny_model("v2"), tmp_path / "file" / "model")


def test_mixed_dtypes_are_named_unless_one_is_asked_for(directory: Path) -> None:
    name = "model.embed_tokens.weight"
    change_tensors(lambda tensors: tensors.update({name: tensors[name].bfloat16()}))(directory)
    with pytest.raises(CheckpointError, match=r"stored as torch.float32, others as torch.bfloat16"):
        load_hf(directory)
    assert load_hf(directory, torch.float32).norm.weight.dtype == torch.float32


def test_a_config_far_larger_than_its_file_is_refused_at_once(directory: Path) -> None:
    edit_json("config.json", lambda raw: raw.update(n_routed_experts=65536, num_hidden_layers=4096))(directory)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match="the configuration describes"):
        load_hf(directory)
    assert time.monotonic() - begun < 5


def test_deeply_nested_json_is_refused(directory: Path) -> None:
    (directory / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_hf(directory)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_keeps_the_routing_bias_in_float32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_hf(tiny_model(name), tmp_path / "model")
    model = load_hf(tmp_path / "model", dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    again = load_hf(tmp_path / "model")
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, tiny_model(name).state_dict()[key])
