"""Damaged GGUF files: whatever happened to the bytes, the answer is one CheckpointError naming the file, or a model."""

import random
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from gguf_writing import deepseek_gguf, llama_gguf, publish, tokenizer_metadata, train_bpe
from oracle.variants import oracle
from tapwater.checkpoint.gguf import GgufFile
from tapwater.errors import CheckpointError


@pytest.fixture(scope="session")
def llama_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("gguf")
    published = publish(oracle("llama/gqa", hidden_size=32, num_hidden_layers=1), directory / "published")
    path = llama_gguf(published).write(directory / "model.gguf", GGMLQuantizationType.F16)
    return path.read_bytes()


@pytest.fixture(scope="session")
def deepseek_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("gguf")
    published = publish(oracle("v3/yarn", num_hidden_layers=2), directory / "published")
    return deepseek_gguf(published).write(directory / "model.gguf").read_bytes()


@pytest.fixture(scope="session")
def tokenizer_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a vocabulary, and quantised blocks, whose scales can be damaged into infinity."""
    directory = tmp_path_factory.mktemp("gguf")
    backend = train_bpe(["<|bos|>", "<|eos|>"], ["</think>"])
    metadata = tokenizer_metadata(backend, "gpt-2", padding=512 - backend.get_vocab_size())
    metadata["tokenizer.chat_template"] = "{{ messages[0].content }}"
    model = oracle("llama/tied", hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=512)
    gguf = llama_gguf(publish(model, directory / "published"), **metadata)
    return gguf.write(directory / "model.gguf", GGMLQuantizationType.Q8_0).read_bytes()


def refusal(path: Path) -> str | None:
    """Open the file and read all of it; the error's text if it is refused. Any other exception or warning fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            file = GgufFile(path)
            for name in file.shapes():
                file.read(name)
            if b"tokenizer.ggml.tokens" in path.read_bytes():
                file.tokenizer()
        except CheckpointError as error:
            assert str(path) in str(error)
            assert len(str(error)) < 2000
            return str(error)
    return None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a GGUF file: it is empty"),
        (b"GG", "not a GGUF file: it starts with b'GG'"),
        (b"PK\x03\x04 a zip archive", r"not a GGUF file: it starts with b'PK"),
        (b"GGUF", "truncated: the version at byte 4 takes 4 bytes, the file ends at 4"),
        (b"GGUF\x01\0\0\0" + bytes(16), "GGUF version 1 is not supported, only"),
        (b"GGUF\0\0\0\x03" + bytes(16), "big-endian GGUF is not supported"),
        (b"GGUF\x03\0\0\0" + bytes(16), "metadata general.architecture is missing"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "truncated: the length of the name of metadata key 1"),
        (struct.pack("<4sI3Q", b"GGUF", 3, 0, 1, 0) + bytes(8), "the name of metadata key 1 of 1 has 0 characters"),
        (
            struct.pack("<4sI3Q", b"GGUF", 3, 0, 1, 900) + b"k" * 900,
            "the name of metadata key 1 of 1 has 900 characters",
        ),
        (random.Random(0).randbytes(4096), "not a GGUF file"),
        (b"GGUF\x03\0\0\0" + random.Random(1).randbytes(4096), "damaged GGUF header: truncated"),
    ],
)
def test_not_a_gguf_file(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    assert message in (refusal(path) or "")


def test_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.gguf") == f"{tmp_path / 'model.gguf'}: no such file"
    assert "cannot be read" in (refusal(tmp_path) or "")


def test_truncated_anywhere(llama_bytes: bytes, deepseek_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for raw in (llama_bytes, deepseek_bytes):
        path.write_bytes(raw)
        assert refusal(path) is None
        padding = len(raw) - len(raw.rstrip(b"\0"))
        step = max(1, len(raw) // 700)
        for length in [*range(0, len(raw) - padding - 4, step), len(raw) - padding - 1]:
            path.write_bytes(raw[:length])
            assert refusal(path) is not None, f"the first {length} bytes passed for the whole file"


def test_truncated_after_opening(llama_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(llama_bytes)
    file = GgufFile(path)
    path.write_bytes(llama_bytes[:-2000])
    with pytest.raises(CheckpointError, match=r"model\.gguf: truncated since it was opened: tensor blk\.0\.\w+"):
        for name in file.shapes():
            file.read(name)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.gguf: tensor output_norm\.weight cannot be read"):
        file.read("model.norm.weight")


def flips(raw: bytes, count: int, end: int, seed: int) -> Iterator[bytes]:
    """`count` copies of `raw`, each with one byte to four changed before `end`."""
    rng = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            damaged[rng.randrange(end)] ^= rng.choice((1, 2, 16, 128, 255, rng.randrange(1, 256)))
        yield bytes(damaged)


@pytest.mark.parametrize("name", ["llama_bytes", "deepseek_bytes", "tokenizer_bytes"])
def test_flipped_bytes(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    raw = request.getfixturevalue(name)
    path = tmp_path / "model.gguf"
    header = raw.rindex(b"output_norm.weight") + 64
    refused = 0
    for damaged in [*flips(raw, 900, header, seed=1), *flips(raw, 100, len(raw), seed=2)]:
        path.write_bytes(damaged)
        refused += refusal(path) is not None
    assert refused > 300


def after(raw: bytes, name: bytes) -> int:
    """The place after a name in the header."""
    return raw.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


def put(raw: bytes, place: int, code: str, value: int) -> bytes:
    return raw[:place] + struct.pack(f"<{code}", value) + raw[place + struct.calcsize(f"<{code}") :]


@pytest.mark.parametrize(
    ("skip", "code", "value", "message"),
    [
        (0, "I", 0, "tensor 'blk.0.ffn_up.weight' has 0 dimensions"),
        (0, "I", 2**31, "tensor 'blk.0.ffn_up.weight' has 2147483648 dimensions"),
        (4, "Q", 0, "tensor 'blk.0.ffn_up.weight' of type F16 has the impossible shape"),
        (4, "Q", 2**63, "truncated: tensor 'blk.0.ffn_up.weight' ends at byte"),
        (4, "Q", 16, "starts at byte"),  # smaller than it is, so the next tensor is out of place
        (20, "I", 99, "tensor 'blk.0.ffn_up.weight' has the unknown type 99"),
        (20, "I", 39, "tensor 'blk.0.ffn_up.weight' is stored as MXFP4; supported are F32, F16, BF16, Q8_0, Q4_0"),
        (20, "I", 12, "tensor 'blk.0.ffn_up.weight' of type Q4_K has the impossible shape [80, 32]"),
        (24, "Q", 2**62, "tensor 'blk.0.ffn_up.weight' starts at byte 4611686"),
        (24, "Q", 8, "tensor 'blk.0.ffn_up.weight' starts at byte"),
    ],
)
def test_damaged_tensor_entries(
    skip: int, code: str, value: int, message: str, llama_bytes: bytes, tmp_path: Path
) -> None:
    """The entry of blk.0.ffn_up.weight: dimension count, two dimensions, type, offset."""
    path = tmp_path / "model.gguf"
    path.write_bytes(put(llama_bytes, after(llama_bytes, b"blk.0.ffn_up.weight") + skip, code, value))
    assert message in (refusal(path) or "")


@pytest.mark.parametrize(
    ("key", "skip", "code", "value", "message"),
    [
        (b"llama.block_count", 0, "I", 77, "metadata 'llama.block_count' has the unknown type 77"),
        (b"general.name", 4, "Q", 2**60, "truncated: metadata 'general.name' at byte"),
        (b"general.name", 12, "B", 0xFF, "metadata 'general.name' is not UTF-8"),
        (b"tokenizer.ggml.tokens", 8, "Q", 2**61, "truncated: metadata 'tokenizer.ggml.tokens' at byte"),
        (b"tokenizer.ggml.token_type", 8, "Q", 2**61, "truncated: metadata 'tokenizer.ggml.token_type' at byte"),
        (b"tokenizer.ggml.tokens", 4, "I", 9, "is a list of the unknown type 9"),  # lists of lists
        (b"tokenizer.ggml.add_bos_token", 4, "B", 7, "metadata 'tokenizer.ggml.add_bos_token' is 7, neither true nor"),
    ],
)
def test_damaged_metadata(
    key: bytes, skip: int, code: str, value: int, message: str, tokenizer_bytes: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(put(tokenizer_bytes, after(tokenizer_bytes, key) + skip, code, value))
    assert message in (refusal(path) or "")


@pytest.mark.parametrize(
    ("name", "twin", "message"),
    [
        (b"blk.0.attn_k.weight", b"blk.0.attn_q.weight", "tensor 'blk.0.attn_q.weight' is there twice"),
        (b"llama.block_count", b"llama.vocab_sizes", "metadata llama.block_count is missing"),
        (
            b"tokenizer.ggml.bos_token_id",
            b"tokenizer.ggml.eos_token_id",
            "'tokenizer.ggml.eos_token_id' is there twice",
        ),
    ],
)
def test_names_that_clash(name: bytes, twin: bytes, message: str, llama_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(llama_bytes.replace(name, twin))
    assert message in (refusal(path) or "")


@pytest.mark.parametrize("alignment", [0, 3, -32])
def test_impossible_alignment(alignment: int, tmp_path: Path) -> None:
    published = publish(oracle("llama/gqa", num_hidden_layers=1), tmp_path / "published")
    path = llama_gguf(published, **{"general.alignment": alignment}).write(tmp_path / "model.gguf")
    assert f"general.alignment is {alignment}, not a power of two" in (refusal(path) or "")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    """A scale damaged into infinity in a quantised block."""
    published = publish(oracle("llama/gqa", hidden_size=32, num_hidden_layers=1), tmp_path / "published")
    gguf = llama_gguf(published)
    raw = np.zeros((32, 34), np.uint8)  # 32 x 32 in Q8_0
    raw[5, :3] = (0, 0x7C, 1)  # float16 infinity times one
    gguf.tensors["blk.0.attn_output.weight"] = (raw, GGMLQuantizationType.Q8_0)
    path = gguf.write(tmp_path / "model.gguf")
    assert "tensor blk.0.attn_output.weight holds values that are not finite; the file is damaged" in (
        refusal(path) or ""
    )
