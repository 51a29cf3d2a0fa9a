"""GGUF's integers, taken over without floats: what comes of them is what the gguf package dequantises, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from gguf_writing import deepseek_gguf, llama_gguf, publish
from oracle.variants import oracle
from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.gguf_blocks import Steps, read_steps, widened
from tapwater.errors import CheckpointError
from tapwater.ops.quant import Format, pack, unpack

EXACT = {"Q4_0": Format.Q4, "Q4_1": Format.Q4_MIN, "Q5_0": Format.Q8, "Q8_0": Format.Q8}
# The float16 numbers of a block, by place: they are made moderate, all other bytes may be anything.
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2)}


def random_rows(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes, a row after the other."""
    size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows, columns // size, block_bytes), dtype=np.uint8)
    for place in HALVES[kind]:
        halves = generator.normal(0, 0.01, blocks.shape[:2]).astype("<f2")
        blocks[:, :, place : place + 2] = halves[..., None].view(np.uint8)
    if kind == "Q8_0":
        blocks[:, :, 2:][blocks[:, :, 2:] == 128] = 127  # no -128, as llama.cpp has none
    return blocks.reshape(rows, -1)


def steps_of(kind: str, raw: np.ndarray) -> Steps | None:
    return read_steps(GGMLQuantizationType[kind], torch.from_numpy(raw))


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (37, 96), (64, 576)])
def test_the_same_numbers(kind: str, rows: int, columns: int) -> None:
    raw = random_rows(kind, rows, columns)
    steps = steps_of(kind, raw)
    assert steps is not None
    assert steps.format is EXACT[kind]
    assert np.array_equal(unpack(pack(*steps)).numpy(), dequantize(raw, GGMLQuantizationType[kind]))


def test_q4_k_but_for_the_rounding_of_its_scales() -> None:
    raw = random_rows("Q4_K", 20, 512)
    steps = steps_of("Q4_K", raw)
    assert steps is not None
    found, expected = unpack(pack(*steps)), torch.from_numpy(dequantize(raw, GGMLQuantizationType.Q4_K))
    assert steps.format is Format.Q4_MIN
    largest = expected.abs().unflatten(-1, (-1, 32)).amax(-1).repeat_interleave(32, -1)
    spread = (steps.scale_OG.float().abs() * 15 + steps.minimum_OG.float().abs()).repeat_interleave(32, -1)
    assert ((found - expected).abs() <= 2**-11 * torch.maximum(largest, spread) + 1e-7).all()
    assert (found - expected).norm() < 3e-4 * expected.norm()


def test_a_q8_0_with_minus_128_has_no_place() -> None:
    raw = random_rows("Q8_0", 4, 64)
    raw[2, 40] = 128
    assert steps_of("Q8_0", raw) is None


@pytest.mark.parametrize("format", [Format.Q4_MIN, Format.Q8])
def test_q4_widens_without_loss(format: Format) -> None:
    steps = steps_of("Q4_0", random_rows("Q4_0", 20, 128))
    assert steps is not None
    wide = widened(steps, format)
    assert wide is not None
    assert torch.equal(unpack(pack(*wide)), unpack(pack(*steps)))


def test_what_does_not_widen() -> None:
    for kind, format in (("Q4_1", Format.Q8), ("Q8_0", Format.Q4_MIN), ("Q4_0", Format.BF16)):
        steps = steps_of(kind, random_rows(kind, 2, 32))
        assert steps is not None
        assert widened(steps, format) is None


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_rows_of_queries_and_keys_are_put_back_in_order(kind: str, tmp_path: Path) -> None:
    published = publish(oracle("llama/gqa", hidden_size=64, intermediate_size=96), tmp_path / "published")
    found = GgufFile(llama_gguf(published).write(tmp_path / "model.gguf", GGMLQuantizationType[kind]))
    matrices = [name for name, shape in found.shapes().items() if len(shape) == 2]
    assert len(matrices) > 10
    for name in matrices:
        steps = found.steps(name)
        assert steps is not None
        assert found.kinds(name) == (kind,)
        assert torch.equal(unpack(pack(*steps)), found.read(name)), name


@pytest.mark.parametrize("absorbed", [True, False], ids=["split kv_b", "whole kv_b"])
def test_experts_one_by_one(absorbed: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "kv_lora_rank": 32, "moe_intermediate_size": 32}
    sizes |= {"v_head_dim": 8, "qk_nope_head_dim": 32, "num_attention_heads": 4}
    published = publish(oracle("v3/no-q-lora", **sizes), tmp_path / "published")
    found = GgufFile(deepseek_gguf(published, absorbed).write(tmp_path / "m.gguf", GGMLQuantizationType.Q4_0))
    for index in range(8):
        name = f"model.layers.1.mlp.experts.{index}.down_proj.weight"
        steps = found.steps(name)
        assert steps is not None
        assert torch.equal(unpack(pack(*steps)), found.read(name))
    kv_b = found.steps("model.layers.1.self_attn.kv_b_proj.weight")
    assert (kv_b is None) == absorbed
    assert found.kinds("model.layers.1.mlp.gate.weight") == ("F32",)


@pytest.mark.parametrize("place", [0, 2])
def test_damaged_scales_are_named(place: int, tmp_path: Path) -> None:
    published = publish(oracle("llama/gqa", hidden_size=32, num_hidden_layers=1), tmp_path / "published")
    gguf = llama_gguf(published)
    raw = random_rows("Q4_1", 32, 32)
    raw[5, place : place + 2] = (0, 0x7C)  # float16 infinity
    gguf.tensors["blk.0.attn_output.weight"] = (raw, GGMLQuantizationType.Q4_1)
    found = GgufFile(gguf.write(tmp_path / "model.gguf"))
    with pytest.raises(CheckpointError, match=r"model\.gguf: tensor blk\.0\.attn_output\.weight .*not finite"):
        found.steps("model.layers.0.self_attn.o_proj.weight")
