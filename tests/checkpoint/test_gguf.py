"""GGUF files of transformers models: the tensors and configurations that went in come out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from gguf_writing import Published, deepseek_gguf, llama_gguf, publish
from oracle.variants import oracle
from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.weights import build
from tapwater.config import ModelConfig, preset, read_config
from tapwater.errors import CheckpointError
from tapwater.model import Sequences

# Every row a multiple of the 32 values of a block.
BLOCKS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
QUANTISED = {"kv_lora_rank": 32, "moe_intermediate_size": 32, "v_head_dim": 8, "qk_nope_head_dim": 32, **BLOCKS}
DEEPSEEKS = ["v2/lite", "v2/q-lora", "v2/grouped", "v2/two-dense", "v2/yarn", "v2/yarn-no-mscale"]
DEEPSEEKS += ["v3/noaux", "v3/no-q-lora", "v3/one-group", "v3/unnormalised", "v3/yarn"]


@pytest.fixture
def lite(tmp_path: Path) -> Published:
    return publish(oracle("v2/lite"), tmp_path / "published")


def check(found: GgufFile, published: Published, tolerance: float = 0.0) -> None:
    """All of `published`, nothing else, and the configuration that transformers wrote."""
    assert dict(found.shapes()) == {name: tuple(tensor.shape) for name, tensor in published.tensors.items()}
    for name, tensor in published.tensors.items():
        torch.testing.assert_close(found.read(name), tensor, rtol=0, atol=tolerance, check_dtype=tolerance == 0)
    assert _without_defaults(found.config) == _without_defaults(read_config(published.directory / "config.json"))


def _without_defaults(config: ModelConfig) -> ModelConfig:
    """initializer_range is not in GGUF; what has a default may be spelt out."""
    head_dim = None if config.is_mla else config.attention_head_dim
    groups = {"n_group": config.moe.n_group, "topk_group": config.moe.topk_group} if config.is_moe else {}
    return dataclasses.replace(config, initializer_range=0.006, head_dim=head_dim, **groups)


@pytest.mark.parametrize("name", ["llama/mha", "llama/gqa", "llama/mqa", "llama/wide-heads", "llama/tied"])
def test_llama_round_trip(name: str, tmp_path: Path) -> None:
    published = publish(oracle(name), tmp_path / "published")
    check(GgufFile(llama_gguf(published).write(tmp_path / "model.gguf")), published)


@pytest.mark.parametrize("absorbed", [True, False], ids=["split kv_b", "whole kv_b"])
@pytest.mark.parametrize("name", DEEPSEEKS)
def test_deepseek_round_trip(name: str, absorbed: bool, tmp_path: Path) -> None:
    published = publish(oracle(name), tmp_path / "published")
    check(GgufFile(deepseek_gguf(published, absorbed).write(tmp_path / "model.gguf")), published)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_llama_agrees_with_transformers(kind: str, tmp_path: Path) -> None:
    """transformers reads the same file to the same bits, rows permuted back and dequantised."""
    model = oracle("llama/gqa", **BLOCKS)
    gguf = llama_gguf(publish(model, tmp_path / "published"))
    path = gguf.write(tmp_path / "model.gguf", GGMLQuantizationType[kind])
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    ours = GgufFile(path)
    assert ours.shapes().keys() == theirs["tensors"].keys()
    for name, tensor in theirs["tensors"].items():
        assert torch.equal(ours.read(name).float(), tensor), name
    for field in ("hidden_size", "num_key_value_heads", "rope_theta", "vocab_size", "tie_word_embeddings"):
        assert getattr(ours.config, field) == theirs["config"][field]


@pytest.mark.parametrize("name", ["llama/gqa", "llama/tied", "v2/lite", "v2/yarn", "v3/noaux", "v3/yarn"])
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = oracle(name)
    published = publish(theirs, tmp_path / "published")
    gguf = llama_gguf(published) if name.startswith("llama") else deepseek_gguf(published)
    source = GgufFile(gguf.write(tmp_path / "model.gguf"))
    ours = build(source.config, source, dtype=None)
    ids = torch.arange(40) * 7 % 97
    with torch.no_grad():
        logits = ours.logits(ours(ids, Sequences((40,)).positions(), Sequences((40,))).hidden_TD)
        torch.testing.assert_close(logits, theirs(ids[None]).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.float32)])
def test_deepseek_in_other_types(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    published = publish(oracle("v3/no-q-lora", **QUANTISED), tmp_path / "published")
    found = GgufFile(deepseek_gguf(published).write(tmp_path / "model.gguf", GGMLQuantizationType[kind]))
    check(found, published, tolerance=0.01)
    assert found.read("model.layers.1.self_attn.kv_b_proj.weight").dtype == dtype
    assert found.read("model.layers.1.mlp.experts.7.up_proj.weight").dtype == dtype


def test_each_expert_is_read_alone(lite: Published, tmp_path: Path) -> None:
    """One expert ruined on disk leaves the others readable: nothing else is touched."""
    gguf = deepseek_gguf(lite)
    gguf.tensors["blk.1.ffn_up_exps.weight"][3] = np.nan
    found = GgufFile(gguf.write(tmp_path / "model.gguf"))
    for index in range(8):
        name = f"model.layers.1.mlp.experts.{index}.up_proj.weight"
        if index == 3:
            with pytest.raises(CheckpointError, match=r"model\.gguf: tensor blk\.1\.ffn_up_exps\.weight .*not finite"):
                found.read(name)
        else:
            assert torch.equal(found.read(name), lite.tensors[name])


def test_tensors_own_their_memory(lite: Published, tmp_path: Path) -> None:
    path = deepseek_gguf(lite).write(tmp_path / "model.gguf")
    before = path.read_bytes()
    found = GgufFile(path)
    for name in found.shapes():
        found.read(name).zero_()
    assert path.read_bytes() == before
    assert torch.equal(found.read("model.norm.weight"), lite.tensors["model.norm.weight"])


@pytest.mark.parametrize("with_copies", [True, False])
def test_prediction_layers(with_copies: bool, tmp_path: Path) -> None:
    """The block after the last layer is a multi-token-prediction module; embedding and head may be left out."""
    published = publish(oracle("v3/noaux"), tmp_path / "published")
    gguf = deepseek_gguf(published, **{"deepseek2.block_count": 4, "deepseek2.nextn_predict_layers": 1})
    gguf.tensors |= {
        name.replace("blk.2.", "blk.3."): array for name, array in gguf.tensors.items() if name.startswith("blk.2.")
    }
    generator = np.random.default_rng(0)
    for name, shape in {"enorm": 48, "hnorm": 48, "eh_proj": (48, 96), "shared_head_norm": 48}.items():
        gguf.tensors[f"blk.3.nextn.{name}.weight"] = generator.normal(size=shape).astype(np.float32)
    if with_copies:
        gguf.tensors["blk.3.nextn.embed_tokens.weight"] = gguf.tensors["token_embd.weight"]
        gguf.tensors["blk.3.nextn.shared_head_head.weight"] = gguf.tensors["output.weight"]
    found = GgufFile(gguf.write(tmp_path / "model.gguf"))
    assert (found.config.num_hidden_layers, found.config.num_nextn_predict_layers) == (3, 1)
    names = {"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "shared_head.norm": "shared_head_norm"}
    for published_name, stored in names.items():
        tensor = found.read(f"model.layers.3.{published_name}.weight")
        assert np.array_equal(tensor.numpy(), gguf.tensors[f"blk.3.nextn.{stored}.weight"])
    copies = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
    for copy, original in copies.items():
        assert torch.equal(found.read(f"model.layers.3.{copy}"), published.tensors[original])
    block = {name for name in found.shapes() if name.startswith("model.layers.2.")}
    for name in block:
        assert torch.equal(found.read(name.replace("layers.2.", "layers.3.")), published.tensors[name])


def test_unknown_name(lite: Published, tmp_path: Path) -> None:
    found = GgufFile(deepseek_gguf(lite).write(tmp_path / "model.gguf"))
    with pytest.raises(CheckpointError, match=r"model\.gguf: has no tensor for model\.layers\.9\.nothing"):
        found.read("model.layers.9.nothing")


# ---- block formats, dequantised once more from ggml's description of them, value by value


def half(raw: bytes) -> float:
    return float(np.frombuffer(raw, "<f2")[0])


def q8_0(block: bytes) -> list[float]:
    return [half(block[:2]) * value for value in np.frombuffer(block[2:], np.int8).tolist()]


def q4_0(block: bytes) -> list[float]:
    nibbles = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
    return [half(block[:2]) * (nibble - 8) for nibble in nibbles]


def q4_1(block: bytes) -> list[float]:
    nibbles = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
    return [half(block[:2]) * nibble + half(block[2:4]) for nibble in nibbles]


def q4_k(block: bytes) -> list[float]:
    """d, dmin, eight 6-bit scales and minima in 12 bytes, then 256 nibbles: 64 values in every 32 bytes."""
    scale, minimum, packed, nibbles = half(block[:2]), half(block[2:4]), block[4:16], block[16:]
    values = []
    for part in range(8):
        if part < 4:
            factor, offset = packed[part] & 63, packed[part + 4] & 63
        else:
            factor = (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4
            offset = (packed[part + 4] >> 4) | (packed[part] >> 6) << 4
        for byte in nibbles[part // 2 * 32 : part // 2 * 32 + 32]:
            nibble = byte >> 4 if part % 2 else byte & 15
            values.append(scale * factor * nibble - minimum * offset)
    return values


def q6_k(block: bytes) -> list[float]:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d; each half block holds 128 values."""
    low, high, scales = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8).tolist()
    scale = half(block[208:])
    values = []
    for index in range(256):
        part, place = divmod(index, 128)
        quarter, column = divmod(place, 32)
        byte = low[64 * part + 32 * (quarter % 2) + column]
        nibble = byte >> 4 if quarter >= 2 else byte & 15
        pair = high[32 * part + column] >> 2 * quarter & 3
        values.append(scale * scales[index // 16] * ((nibble | pair << 4) - 32))
    return values


@pytest.mark.parametrize(
    ("kind", "block_bytes", "block_values"),
    [("Q8_0", 34, q8_0), ("Q4_0", 18, q4_0), ("Q4_1", 20, q4_1), ("Q4_K", 144, q4_k), ("Q6_K", 210, q6_k)],
)
def test_block_formats(
    kind: str, block_bytes: int, block_values: Callable[[bytes], list[float]], tmp_path: Path
) -> None:
    """Random bytes as a down_proj of 8 x 256; the float16 scales are kept moderate."""
    model = oracle("llama/gqa", hidden_size=8, intermediate_size=256, num_hidden_layers=1, head_dim=2)
    gguf = llama_gguf(publish(model, tmp_path / "published"))
    per_row = 256 // len(block_values(bytes(block_bytes)))
    raw = np.random.default_rng(0).integers(0, 256, (8, per_row, block_bytes), dtype=np.uint8)
    for place in {"Q6_K": (209,), "Q4_1": (1, 3), "Q4_K": (1, 3)}.get(kind, (1,)):
        raw[:, :, place] = raw[:, :, place] & 0x83 | 0x30  # the exponent's high byte: sizes between 1/8 and 1/2
    gguf.tensors["blk.0.ffn_down.weight"] = (raw.reshape(8, -1), GGMLQuantizationType[kind])
    found = GgufFile(gguf.write(tmp_path / "model.gguf")).read("model.layers.0.mlp.down_proj.weight")
    expected = [[value for block in row for value in block_values(block.tobytes())] for row in raw]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


# ---- a real file


def test_smollm2_agrees_with_transformers(smollm2_path: Path) -> None:
    ours = GgufFile(smollm2_path)
    assert ours.config == preset("smollm2-135m")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=30))  # only its parameter names are used
    theirs = load_gguf_checkpoint(str(smollm2_path), return_tensors=True, model_to_load=model)["tensors"]
    assert ours.shapes().keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours.read(name), tensor), name
