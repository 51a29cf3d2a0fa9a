"""Perplexity read layer by layer is the perplexity of the whole model."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tapwater.checkpoint import pack_weights, save_hf
from tapwater.checkpoint.hf import HfDirectory
from tapwater.checkpoint.scoring import perplexity
from tapwater.checkpoint.unpacked import UnpackedSource
from tapwater.model import Sequences, Transformer
from tapwater.ops.quant import Format
from tiny import CONFIGS, prompt, tiny_model

WINDOWS = [torch.tensor(prompt(200, 1)), torch.tensor(prompt(7, 2)), torch.tensor(prompt(2, 3))]


def whole_perplexity(model: Transformer) -> float:
    loss = 0.0
    for window in WINDOWS:
        sequences = Sequences((len(window),))
        hidden = model(window, sequences.positions(), sequences).hidden_TD
        loss += float(cross_entropy(model.logits(hidden)[:-1], window[1:], reduction="sum"))
    return math.exp(loss / sum(len(window) - 1 for window in WINDOWS))


@pytest.mark.parametrize("name", CONFIGS)
def test_layer_by_layer_is_the_same(name: str, tmp_path: Path) -> None:
    save_hf(tiny_model(name), tmp_path / "model")
    source = HfDirectory(tmp_path / "model")
    heard: list[tuple[int, int]] = []
    found = perplexity(source.config, source, WINDOWS, lambda done, total: heard.append((done, total)))
    assert found == pytest.approx(whole_perplexity(tiny_model(name)), rel=1e-5)
    layers = source.config.num_hidden_layers
    assert heard == [(layer, layers) for layer in range(1, layers + 1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_weights_score_as_the_model_they_stand_for(name: str, tmp_path: Path) -> None:
    """bfloat16, packed: the model whose weights were rounded so, but for the norms and gates that stay as they are."""
    save_hf(tiny_model(name), tmp_path / "model")
    source = HfDirectory(tmp_path / "model")
    weights = pack_weights(source.config, source, Format.BF16).weights
    rounded = Transformer.random(CONFIGS[name], seed=3).eval().requires_grad_(False)
    for key, parameter in rounded.named_parameters():
        if key not in weights.tensors:
            parameter.copy_(parameter.bfloat16())
    unpacked = UnpackedSource(source.config, weights, "packed")
    found = perplexity(unpacked.config, unpacked, WINDOWS)
    assert found == pytest.approx(whole_perplexity(rounded), rel=1e-5)
    assert found != pytest.approx(whole_perplexity(tiny_model(name)), rel=1e-5)
