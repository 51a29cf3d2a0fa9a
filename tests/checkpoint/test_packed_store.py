"""Packed directories: what was written is what is mapped, and damage is one clear error."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoint.packed_models import write, write_model
from tapwater.checkpoint import PackedDirectory, load_config, load_packed, open_source, pack_weights
from tapwater.checkpoint.packed_store import ALIGNMENT
from tapwater.errors import CheckpointError, TapwaterError
from tapwater.ops.quant import Format
from tiny import CONFIGS


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write(write_model(tmp_path / "model"), tmp_path / "packed")


@pytest.mark.parametrize("format", [Format.Q4_MIN, Format.Q8, Format.BF16])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_written_is_what_is_mapped(name: str, format: Format, tmp_path: Path) -> None:
    source, tokenizer = open_source(write_model(tmp_path / "model", name))
    expected = pack_weights(source.config, source, format)
    loaded = load_packed(write(tmp_path / "model", tmp_path / "packed", format), None)
    assert loaded.config == source.config == load_config(tmp_path / "packed")
    assert loaded.notes == expected.notes
    assert loaded.weights.matrices.keys() == expected.weights.matrices.keys()
    for key, weight in expected.weights.matrices.items():
        found = loaded.weights.matrices[key]
        assert (found.format, found.count, found.shape) == (weight.format, weight.count, weight.shape)
        assert torch.equal(found.blocks, weight.blocks)
        assert found.blocks.data_ptr() % ALIGNMENT == 0
    assert loaded.weights.tensors.keys() == expected.weights.tensors.keys()
    for key, tensor in expected.weights.tensors.items():
        assert torch.equal(loaded.weights.tensors[key], tensor)
    for text in ("The quick brown fox", "今天 </think> 😀", "<|end|>"):
        assert loaded.tokenizer.encode(text) == tokenizer.encode(text)
    messages = [{"role": "user", "content": "hello <|eos|>"}]
    assert loaded.tokenizer.encode_chat(messages) == tokenizer.encode_chat(messages)
    assert loaded.tokenizer.eos_token_ids == tokenizer.eos_token_ids
    assert loaded.tokenizer.add_bos_token == tokenizer.add_bos_token


def test_only_the_finished_files_are_there(packed: Path) -> None:
    names = {"config.json", "manifest.json", "weights.tapwater", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in packed.iterdir()} == names | {"generation_config.json"}
    assert [path.name for path in packed.parent.iterdir() if "partial" in path.name] == []


def test_the_same_model_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "model", tmp_path / "again")
    for path in packed.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_writing_to_mapped_weights_leaves_the_file_alone(packed: Path) -> None:
    before = (packed / "weights.tapwater").read_bytes()
    weights = load_packed(packed, None).weights
    for weight in weights.matrices.values():
        weight.blocks.zero_()
    assert (packed / "weights.tapwater").read_bytes() == before


def test_a_packed_model_is_loaded_in_its_own_format_only(packed: Path) -> None:
    load_packed(packed, Format.Q4_MIN)
    with pytest.raises(CheckpointError, match="was packed as q4_min and cannot become q8"):
        load_packed(packed, Format.Q8)
    with pytest.raises(CheckpointError, match="is packed for the native kernels"):
        open_source(packed)


def test_other_sources_load_alike(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")
    source, _ = open_source(path)
    expected = pack_weights(source.config, source, Format.Q8)
    loaded = load_packed(path, Format.Q8)
    assert loaded.notes == expected.notes
    for key, weight in expected.weights.matrices.items():
        assert torch.equal(loaded.weights.matrices[key].blocks, weight.blocks)
    with pytest.raises(CheckpointError, match="no such file or directory"):
        load_packed(tmp_path / "nothing", None)


# ---- damage


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """An edit of manifest.json."""

    def apply(path: Path) -> None:
        raw = json.loads((path / "manifest.json").read_text())
        change(raw)
        (path / "manifest.json").write_text(json.dumps(raw))

    return apply


def array(raw: dict, name: str) -> dict:
    return next(each for each in raw["arrays"] if each["name"] == name)


def cut(path: Path) -> None:
    weights = path / "weights.tapwater"
    weights.write_bytes(weights.read_bytes()[:-1])


def reconfigure(**changes: object) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        raw = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(raw | changes))

    return apply


HEAD = "lm_head.weight"
UP = "layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, r"weights\.tapwater: has \d+ bytes, the manifest says \d+: truncated"),
        (lambda path: (path / "weights.tapwater").write_bytes(b""), r"weights\.tapwater: has 0 bytes"),
        (lambda path: (path / "weights.tapwater").unlink(), r"weights\.tapwater: cannot be read"),
        (lambda path: (path / "manifest.json").unlink(), r"manifest\.json: no such file; without it .* no finished"),
        (lambda path: (path / "manifest.json").write_text("{"), r"manifest\.json: not valid JSON"),
        (lambda path: (path / "manifest.json").write_text("[]"), r"manifest\.json: expected a JSON object"),
        (lambda path: (path / "config.json").unlink(), r"config\.json: no such file"),
        (lambda path: (path / "tokenizer.json").unlink(), r"tokenizer\.json"),
        (edit(lambda raw: raw.update(format_version=2)), "format_version 2 is not supported, only 1"),
        (edit(lambda raw: raw.pop("format_version")), "format_version None is not supported"),
        (edit(lambda raw: raw.pop("arrays")), "missing field 'arrays'"),
        (edit(lambda raw: raw.update(extra=1)), "unknown field 'extra'"),
        (edit(lambda raw: raw.update(requested="q3")), "requested format 'q3' is unknown"),
        (edit(lambda raw: raw["arrays"].remove(array(raw, HEAD))), rf"array {HEAD} is missing"),
        (edit(lambda raw: raw["arrays"].append(raw["arrays"][0])), "listed twice"),
        (edit(lambda raw: array(raw, HEAD).update(name="lm_heap.weight")), rf"array {HEAD} is missing"),
        (edit(lambda raw: raw["arrays"].append(raw["arrays"][0] | {"name": "x"})), "array x is not part of the model"),
        (edit(lambda raw: array(raw, HEAD).update(format="q5")), rf"format 'q5' of array {HEAD} is unknown"),
        (edit(lambda raw: array(raw, HEAD).update(format="q4")), rf"array {HEAD} is said to be \d+ bytes"),
        (edit(lambda raw: array(raw, HEAD).update(format="float32")), rf"array {HEAD} cannot be float32"),
        (edit(lambda raw: array(raw, "norm.weight").update(format="q8")), r"array norm\.weight cannot be q8"),
        (
            edit(lambda raw: array(raw, HEAD).update(shape=[1, 512, 63])),
            rf"array {HEAD} has shape \[1, 512, 63\], conf",
        ),
        (edit(lambda raw: array(raw, HEAD).update(shape=[512, 64])), rf"array {HEAD} has shape \[512, 64\]"),
        (edit(lambda raw: array(raw, HEAD).update(shape=[1, -512, 64])), rf"array {HEAD} has shape"),
        (edit(lambda raw: array(raw, HEAD).update(shape="wide")), "shape"),
        (edit(lambda raw: array(raw, HEAD).update(offset=65)), rf"array {HEAD} is said to be \d+ bytes at 65, it must"),
        (edit(lambda raw: array(raw, HEAD).update(bytes=10**12)), rf"array {HEAD} is said to be 1000000000000 bytes"),
        (edit(lambda raw: array(raw, HEAD).update(crc32="x")), "crc32: expected int"),
        (edit(lambda raw: raw["arrays"].reverse()), "it must be"),
        (
            reconfigure(vocab_size=513),
            r"embed_tokens\.weight has shape \[1, 512, 64\], config.json says \[1, 513, 64\]",
        ),
        (reconfigure(num_hidden_layers=3), r"array layers\.2\.\S+ is missing"),
        (reconfigure(num_hidden_layers=1), r"array layers\.1\.\S+ is not part of the model"),
        (reconfigure(num_hidden_layers=4096, n_routed_experts=65536), "describes a model far larger"),
        (reconfigure(hidden_size=-1), "hidden_size"),
    ],
)
def test_damage_is_one_clear_error(damage: Callable[[Path], object], words: str, packed: Path) -> None:
    damage(packed)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_packed(packed, None)
    assert str(packed) in str(caught.value)


def test_gate_and_up_of_two_formats_are_refused(packed: Path, tmp_path: Path) -> None:
    """Each array fits its format and place: only together they are wrong."""
    raw = json.loads((packed / "manifest.json").read_text())
    other = json.loads((write(tmp_path / "model", tmp_path / "q8", Format.Q8) / "manifest.json").read_text())
    moved = 0
    for record, wide in zip(raw["arrays"], other["arrays"], strict=True):
        record["offset"] += moved
        if record["name"] == UP:
            grown = -(-wide["bytes"] // ALIGNMENT) - -(-record["bytes"] // ALIGNMENT)
            record["format"], record["bytes"], moved = "q8", wide["bytes"], grown * ALIGNMENT
    (packed / "manifest.json").write_text(json.dumps(raw))
    weights = packed / "weights.tapwater"
    weights.write_bytes(weights.read_bytes() + bytes(moved))
    with pytest.raises(CheckpointError, match=r"gate_proj.weight is q4_min and \S+up_proj.weight q8: they must agree"):
        load_packed(packed, None)


def test_random_damage_to_the_manifest_never_leaks_another_error(packed: Path) -> None:
    chance = random.Random(0)
    path = packed / "manifest.json"
    whole = path.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged if chance.random() < 0.7 else damaged[: chance.randrange(len(whole))])
        try:
            load_packed(packed, None)
        except TapwaterError:
            refused += 1
    assert refused > 80


def test_verify_names_an_array_the_disk_cannot_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingDisk(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("input/output error")

    opened = PackedDirectory(packed)
    monkeypatch.setattr(Path, "open", lambda path, mode: FailingDisk())
    with pytest.raises(CheckpointError, match=r"array embed_tokens\.weight cannot be read: input/output error; quant"):
        opened.verify()


def test_verify_finds_a_flipped_bit_and_names_its_array(packed: Path) -> None:
    opened = PackedDirectory(packed)
    heard: list[int] = []
    opened.verify(lambda done, total: heard.append(done))
    assert heard == sorted(heard)
    for record in opened.manifest.arrays[:: len(opened.manifest.arrays) // 5]:
        weights = packed / "weights.tapwater"
        whole = weights.read_bytes()
        place = record.offset + record.bytes // 2
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        PackedDirectory(packed)  # opening does not read the weights
        with pytest.raises(CheckpointError, match=rf"weights\.tapwater: array {record.name} is damaged"):
            PackedDirectory(packed).verify()
        weights.write_bytes(whole)
    opened.verify()
