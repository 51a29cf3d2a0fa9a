"""Packing whole models: every array there, exact where a format allows it, near and accounted for where not."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quantize
from safetensors.torch import load_file, save_file

from checkpoint.test_gguf_blocks import random_rows
from gguf_writing import Gguf, deepseek_gguf, llama_gguf, publish
from oracle.variants import oracle
from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.hf import HfDirectory, save_hf
from tapwater.checkpoint.packing import AS_STORED, pack_weights
from tapwater.config import replace_fields
from tapwater.errors import CheckpointError
from tapwater.model import PackedWeights, Transformer
from tapwater.ops.quant import Format, quantise, unpack
from tiny import CONFIGS, tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
LATENT = {"kv_lora_rank": 32, "moe_intermediate_size": 32, "v_head_dim": 8, "qk_nope_head_dim": 32, **SIZES}
KV_B = ("key_up", "kv_b_key", "kv_b_value")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_hf(tiny_model("v3"), tmp_path / "model")
    return tmp_path / "model"


def llama(tmp_path: Path) -> Gguf:
    return llama_gguf(publish(oracle("llama/gqa", **SIZES), tmp_path / "published"))


def packed(path: Path, format: Format | None) -> PackedWeights:
    source = GgufFile(path) if path.suffix == ".gguf" else HfDirectory(path)
    return pack_weights(source.config, source, format).weights


def formats(weights: PackedWeights) -> set[Format]:
    return {weight.format for weight in weights.matrices.values()}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_the_model_is_there(name: str, tmp_path: Path) -> None:
    save_hf(tiny_model(name), tmp_path / "model")
    weights = packed(tmp_path / "model", None)
    state = tiny_model(name).state_dict()
    for key, packed_weight in weights.matrices.items():
        if not key.endswith(KV_B):
            assert torch.equal(unpack(packed_weight), state.pop(key).bfloat16().float()), key
    for key, tensor in weights.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state.pop(key)), key
    latent = {key for key in state if key.endswith("kv_b_proj.weight")}
    assert state.keys() == latent
    assert len(latent) * 3 == sum(key.endswith(KV_B) for key in weights.matrices)


@pytest.mark.parametrize(("format", "tolerance"), [(Format.Q8, 0.006), (Format.Q4_MIN, 0.006), (Format.BF16, 0.003)])
def test_latent_up_projections_in_both_orientations(format: Format, tolerance: float, directory: Path) -> None:
    """Eight bits even where all else has four, so that the two are one matrix to within their rounding."""
    config = tiny_model("v3").config
    heads, mla = config.num_attention_heads, config.mla
    weights = packed(directory, format)
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}.self_attn."
        whole = tiny_model("v3").state_dict()[f"{prefix}kv_b_proj.weight"].unflatten(0, (heads, -1))
        key, value = whole.split([mla.qk_nope_head_dim, mla.v_head_dim], dim=1)
        for name, expected in (("key_up", key.transpose(1, 2)), ("kv_b_key", key), ("kv_b_value", value)):
            found = weights.matrices[prefix + name]
            assert found.format is (Format.BF16 if format is Format.BF16 else Format.Q8)
            assert (found.count, *found.shape) == tuple(expected.shape)
            assert (unpack(found) - expected).norm() < tolerance * expected.norm()


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    config = replace_fields(CONFIGS["llama-gqa"], {"tie_word_embeddings": True}, "tied")
    save_hf(Transformer.random(config, seed=0), tmp_path / "model")
    weights = packed(tmp_path / "model", None)
    assert "embed_tokens.weight" in weights.matrices
    assert "lm_head.weight" not in weights.matrices


def test_prediction_modules_are_left_out(tmp_path: Path) -> None:
    config = replace_fields(CONFIGS["v3"], {"num_nextn_predict_layers": 1}, "mtp")
    save_hf(Transformer.random(config, seed=0), tmp_path / "model")
    weights = packed(tmp_path / "model", Format.Q8)
    assert weights.matrices.keys() == packed_names("v3", tmp_path)


def packed_names(name: str, tmp_path: Path) -> set[str]:
    save_hf(tiny_model(name), tmp_path / "without")
    return set(packed(tmp_path / "without", Format.Q8).matrices)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "BF16"])
@pytest.mark.parametrize("family", ["llama", "deepseek"])
def test_gguf_as_stored_loses_nothing(family: str, kind: str, tmp_path: Path) -> None:
    if family == "llama":
        gguf = llama(tmp_path)
    else:
        gguf = deepseek_gguf(publish(oracle("v3/no-q-lora", **LATENT), tmp_path / "published"))
    source = GgufFile(gguf.write(tmp_path / "model.gguf", GGMLQuantizationType[kind]))
    made = pack_weights(source.config, source, None)
    compared = 0
    for name, weight in made.weights.matrices.items():
        if name.endswith(KV_B):
            continue
        assert weight.format is AS_STORED[kind]
        for index in range(weight.count):
            hf_name = re.sub(r"experts\.(\w+)$", rf"experts.{index}.\1.weight", name)
            hf_name = hf_name if hf_name.startswith("lm_head") else f"model.{hf_name}"
            assert torch.equal(unpack(weight.matrix(index)), source.read(hf_name).float()), name
            compared += 1
    assert compared > 20
    assert all("requantised" in note and kind in note for note in made.notes)
    assert bool(made.notes) == (family == "deepseek" and kind != "BF16")  # the latent up-projections, in eight bits


@pytest.mark.parametrize(
    ("kind", "asked", "matrices", "vocabulary"),
    [
        ("Q4_0", Format.Q4_MIN, Format.Q4, Format.Q4),
        ("Q4_1", Format.Q4_MIN, Format.Q4_MIN, Format.Q4_MIN),
        ("Q8_0", Format.Q4_MIN, Format.Q4_MIN, Format.Q8),
        ("F16", Format.Q4_MIN, Format.Q4_MIN, Format.Q8),
        ("Q4_0", Format.Q8, Format.Q8, Format.Q8),
        ("Q4_1", Format.BF16, Format.BF16, Format.BF16),
    ],
)
def test_one_format_for_all(kind: str, asked: Format, matrices: Format, vocabulary: Format, tmp_path: Path) -> None:
    source = GgufFile(llama(tmp_path).write(tmp_path / "model.gguf", GGMLQuantizationType[kind]))
    made = pack_weights(source.config, source, asked)
    for name, weight in made.weights.matrices.items():
        assert weight.format is (vocabulary if name in ("embed_tokens.weight", "lm_head.weight") else matrices), name
    if (kind, asked) in (("Q4_0", Format.Q4_MIN), ("Q4_0", Format.Q8), ("Q4_1", Format.Q4_MIN)):
        assert made.notes == ()
        down = made.weights.matrices["layers.0.mlp.down_proj.weight"]
        assert torch.equal(unpack(down), source.read("model.layers.0.mlp.down_proj.weight"))
    else:
        assert made.notes[-1].startswith(("21 tensors", "23 tensors"))


@pytest.mark.parametrize(
    ("gate", "up", "expected", "exact"),
    [("Q4_0", "Q8_0", Format.Q8, True), ("Q4_0", "Q4_1", Format.Q4_MIN, True), ("Q8_0", "Q4_1", Format.Q8, False)],
)
def test_gate_and_up_share_a_format(gate: str, up: str, expected: Format, exact: bool, tmp_path: Path) -> None:
    gguf = llama(tmp_path)
    for name, kind in (("gate", gate), ("up", up)):
        stored = gguf.tensors[f"blk.1.ffn_{name}.weight"]
        gguf.tensors[f"blk.1.ffn_{name}.weight"] = (quantize(stored, GGMLQuantizationType[kind]), kind_of(kind))
    source = GgufFile(gguf.write(tmp_path / "model.gguf", GGMLQuantizationType.Q4_0))
    weights = pack_weights(source.config, source, None).weights.matrices
    for name in ("gate_proj", "up_proj"):
        found = weights[f"layers.1.mlp.{name}.weight"]
        original = source.read(f"model.layers.1.mlp.{name}.weight")
        assert found.format is expected
        assert torch.equal(unpack(found), original) or not (exact or name == "gate_proj")
        assert (unpack(found) - original).norm() < 0.006 * original.norm()
    assert weights["layers.0.mlp.up_proj.weight"].format is Format.Q4


def kind_of(name: str) -> GGMLQuantizationType:
    return GGMLQuantizationType[name]


HALF_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q5_1": (0, 2)}
HALF_AT |= {"IQ4_NL": (0,), "IQ4_XS": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,)}
HALF_AT |= {"IQ3_S": (0,), "IQ1_S": (0,)}


@pytest.mark.parametrize("kind", HALF_AT)
def test_other_types_are_requantised_at_a_stated_error(kind: str, tmp_path: Path) -> None:
    """Random bytes as a down_proj of 8 x 256, with moderate scales; the note says what comparing shows."""
    model = oracle("llama/gqa", hidden_size=8, intermediate_size=256, num_hidden_layers=1, head_dim=2)
    gguf = llama_gguf(publish(model, tmp_path / "published"))
    size, block_bytes = GGML_QUANT_SIZES[kind_of(kind)]
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (8, 256 // size, block_bytes), dtype=np.uint8)
    for place in HALF_AT[kind]:
        halves = generator.uniform(0.001, 0.002, blocks.shape[:2]).astype("<f2")
        blocks[:, :, place : place + 2] = halves[..., None].view(np.uint8)
    gguf.tensors["blk.0.ffn_down.weight"] = (blocks.reshape(8, -1), kind_of(kind))
    source = GgufFile(gguf.write(tmp_path / "model.gguf"))
    made = pack_weights(source.config, source, None)
    found = made.weights.matrices["layers.0.mlp.down_proj.weight"]
    original = source.read("model.layers.0.mlp.down_proj.weight")
    error = float((unpack(found) - original).norm() / original.norm())
    note = next(note for note in made.notes if kind in note)
    assert note == f"1 tensor requantised from {kind} to {AS_STORED[kind]}, relative error {error:.2%}"
    assert found.format is AS_STORED[kind]
    assert error < {"Q4_K": 0.0005}.get(kind, 0.01 if found.format is Format.Q8 else 0.12)


def test_types_above_four_bits_need_no_more_than_eight() -> None:
    """Every type that can be read has a place, and none that is finer than four bits gets only four."""
    from tapwater.checkpoint.gguf_container import SUPPORTED

    assert {kind.name for kind in SUPPORTED} == AS_STORED.keys()
    for kind in SUPPORTED:
        size, block_bytes = GGML_QUANT_SIZES[kind]
        assert (8 * block_bytes / size > 5) == (AS_STORED[kind.name] in (Format.Q8, Format.BF16)) or kind.name in (
            "IQ4_NL",
            "IQ4_XS",
        )


def test_a_minus_128_is_requantised_and_counted(tmp_path: Path) -> None:
    gguf = llama(tmp_path)
    raw = random_rows("Q8_0", 64, 96)
    raw[2, 40] = 128
    gguf.tensors["blk.0.ffn_down.weight"] = (raw, GGMLQuantizationType.Q8_0)
    source = GgufFile(gguf.write(tmp_path / "model.gguf", GGMLQuantizationType.Q8_0))
    made = pack_weights(source.config, source, None)
    (note,) = made.notes
    assert note.startswith("1 tensor requantised from Q8_0 to q8, relative error 0.")
    assert formats(made.weights) == {Format.Q8}


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(name: str, bad: float, directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[7] = bad
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{directory}.*{re.escape(name.removeprefix('model.'))}.*finite"):
        packed(directory, Format.Q8)


def test_types_that_cannot_be_packed_are_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is stored as F8_E4M3, which cannot be packed"):
        packed(directory, None)


def test_progress_counts_arrays(directory: Path) -> None:
    source = HfDirectory(directory)
    heard: list[tuple[int, int]] = []
    made = pack_weights(source.config, source, Format.Q8, lambda done, total: heard.append((done, total)))
    count = len(made.weights.matrices) + len(made.weights.tensors)
    assert heard == [(done, count) for done in range(1, count + 1)]


def test_stacked_experts_are_their_matrices(directory: Path) -> None:
    stacked = packed(directory, Format.Q4_MIN).matrices["layers.1.mlp.experts.up_proj"]
    original = tiny_model("v3").state_dict()["layers.1.mlp.experts.up_proj"]
    assert stacked.count == len(original) > 1
    for index, matrix in enumerate(original):
        assert torch.equal(stacked.matrix(index).blocks, quantise(matrix, Format.Q4_MIN).blocks)


def test_smollm2_as_stored_is_bit_for_bit_what_the_file_holds(smollm2_path: Path) -> None:
    source = GgufFile(smollm2_path)
    loaded = pack_weights(source.config, source, None)
    assert loaded.notes == ()
    assert len(loaded.weights.matrices) == 211
    for name, weight in loaded.weights.matrices.items():
        assert (unpack(weight) == source.read(f"model.{name}")).all(), name
