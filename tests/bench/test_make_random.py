"""Random models: read back by the gguf package's reader and by ours, computed with, and refused where impossible."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from make_random import DEVIATION, write
from metadata import metadata
from random_model import SHAPE
from tapwater.checkpoint import load_model
from tapwater.checkpoint.gguf import GgufFile
from tapwater.config import ModelConfig, preset, replace_fields
from tapwater.errors import ConfigError
from tapwater.model import Sequences


def made(path: Path, type: str, seed: int = 0, config: ModelConfig = SHAPE) -> Path:
    steps = list(write(path, config, type, seed))
    assert steps[-1][0] == steps[-1][1] and steps == sorted(steps)
    return path


@pytest.mark.parametrize("type", ["q4_0", "q8_0"])
def test_gguf_reads_the_planned_tensors_with_weights_of_trained_size(tmp_path: Path, type: str) -> None:
    reader = GGUFReader(made(tmp_path / "random.gguf", type))
    matrices = 0
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            assert (values == 1).all()
            continue
        matrices += 1
        spread = 6 * DEVIATION / np.sqrt(values.size)
        assert abs(values.mean()) < spread, tensor.name
        assert abs(values.std() - DEVIATION) < 6 * spread, tensor.name
        router = "ffn_gate_inp" in tensor.name
        assert tensor.tensor_type.name == ("F32" if router else type.upper())
        if type == "q8_0" and not router:
            assert tensor.data.reshape(-1, 34)[:, 2:].view(np.int8).min() == -127
    assert matrices == 2 + 3 * 5 + 3 + 2 * 7


@pytest.mark.parametrize("type", ["q4_0", "q8_0"])
def test_our_reader_gives_the_shape_back_and_the_model_computes(tmp_path: Path, type: str) -> None:
    path = made(tmp_path / "random.gguf", type)
    assert GgufFile(path).config == SHAPE
    loaded = load_model(path, torch.float32)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("tap water, 3 l")) == "tap water, 3 l"
    tokens = torch.randint(SHAPE.vocab_size, (64,), generator=torch.Generator().manual_seed(0))
    sequences = Sequences((64,))
    hidden_TD = loaded.model(tokens, sequences.positions(), sequences).hidden_TD
    logits_TW = loaded.model.logits(hidden_TD)
    assert logits_TW.isfinite().all()
    # different tokens are different to the model: neither all experts nor all answers are the same
    assert len(logits_TW.argmax(-1).unique()) > 16


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        made(tmp_path / f"{index}.gguf", "q4_0", seed).read_bytes() for index, seed in enumerate((1, 1, 2))
    )
    assert first == again != other


def test_yarn_and_ungrouped_experts_of_v2_lite_are_in_the_metadata() -> None:
    fields = metadata(preset("deepseek-v2-lite"))
    assert fields["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)
    assert fields["deepseek2.attention.key_length"] == 576
    assert fields["deepseek2.expert_group_count"] == 1


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    steps = write(tmp_path / "random.gguf", SHAPE, "q4_0", seed=0)
    next(steps)
    assert [path.name for path in tmp_path.iterdir()] == ["random.gguf.partial"]
    steps.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"q_lora_rank": 64}, "q_lora_rank"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
        ({"qk_nope_head_dim": 48}, "blk.0.attn_k_b.weight: rows of 48"),
        ({"bos_token_id": 3}, "bos_token_id 3"),
        ({"bos_token_id": None}, "bos_token_id"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path, changes: dict, named: str) -> None:
    config = replace_fields(SHAPE, changes, "test")
    with pytest.raises(ConfigError, match=named):
        next(write(tmp_path / "random.gguf", config, "q4_0", seed=0))
    assert not list(tmp_path.iterdir())
