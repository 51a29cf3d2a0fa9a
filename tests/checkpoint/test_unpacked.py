"""Packed directories on torch: the very weights the kernels compute with, and answers where there are no kernels."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoint.packed_models import write, write_model
from tapwater.checkpoint import PackedDirectory, load_hf, load_model
from tapwater.config import EngineConfig
from tapwater.engine import SamplingParams
from tapwater.llm import LLM
from tapwater.model import Sequences, Transformer
from tapwater.ops import native
from tapwater.ops.quant import Format, quantise, unpack
from tiny import prompt

ENGINE = EngineConfig(cache_tokens=512, max_batch_tokens=64, threads=1)
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def rounded(parameter: Tensor, format: Format) -> Tensor:
    """A matrix or a stack of them as `format` holds it."""
    matrices = parameter.reshape(-1, *parameter.shape[-2:])
    return torch.stack([unpack(quantise(matrix, format)) for matrix in matrices]).view_as(parameter)


def round_weights(model: Transformer, formats: Mapping[str, str]) -> None:
    """Do to a float model what packing did to its weights, one parameter at a time."""
    for name, parameter in model.named_parameters():
        packed_name = name.replace("kv_b_proj.weight", "kv_b_key")
        if not name.startswith("mtp.") and formats[packed_name] != "float32":
            parameter.data = rounded(parameter.data, Format(formats[packed_name]))


def logits(model: Transformer) -> Tensor:
    ids, sequences = torch.tensor(prompt(40, 0)), Sequences((33, 7))
    with torch.inference_mode():
        return model.logits(model(ids, sequences.positions(), sequences).hidden_TD)


@pytest.mark.parametrize("format", [Format.Q4_MIN, Format.Q8, Format.BF16])
@pytest.mark.parametrize(("name", "prediction_layers"), [("llama-gqa", 0), ("v2", 0), ("v3", 1)])
def test_torch_computes_with_the_packed_weights(
    name: str, prediction_layers: int, format: Format, tmp_path: Path
) -> None:
    original = write_model(tmp_path / "model", name, prediction_layers=prediction_layers)
    packed = write(original, tmp_path / "packed", format)
    reference = load_hf(original)
    before = logits(reference)
    round_weights(reference, {record.name: record.format for record in PackedDirectory(packed).manifest.arrays})
    heard: list[tuple[int, int]] = []
    loaded = load_model(packed, None, lambda done, total: heard.append((done, total))).model
    found = logits(loaded)
    torch.testing.assert_close(found, logits(reference))
    assert not torch.allclose(found, before)
    assert loaded.config.num_nextn_predict_layers == 0  # packing leaves them out
    assert heard[-1] == (len(heard), len(heard))


def test_weights_are_cast_to_the_dtype_asked_for(tmp_path: Path) -> None:
    packed = write(write_model(tmp_path / "model"), tmp_path / "packed")
    dtypes = {parameter.dtype for parameter in load_model(packed, torch.bfloat16).model.parameters()}
    assert dtypes == {torch.bfloat16}


def test_the_model_does_not_live_in_the_file(tmp_path: Path) -> None:
    packed = write(write_model(tmp_path / "model"), tmp_path / "packed")
    model = load_model(packed, None).model
    expected = logits(model)
    (packed / "weights.tapwater").write_bytes(b"")  # a mapped page of it would now end the process
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_torch_answers_from_a_packed_directory(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packed = write(write_model(tmp_path / "model"), tmp_path / "packed")
    monkeypatch.setattr(native, "_library_path", lambda: None)
    with caplog.at_level(logging.WARNING, logger="tapwater"):
        llm = LLM.load(packed, EngineConfig(**vars(ENGINE) | {"backend": backend}))
    try:
        assert llm.computed_by == "torch (float32)"
        (answer,) = llm.generate(["The quick brown fox"], GREEDY)
    finally:
        llm.close()
    assert len(answer.token_ids) == 8
    assert ("torch computes instead" in caplog.text) == (backend == "auto")
