"""Logits, gradients and checkpoints against transformers, for every way the architectures can differ."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from oracle.variants import NAMES, oracle
from tapwater.checkpoint.hf import load_hf, save_hf
from tapwater.model import Sequences, Transformer

LENGTH = 40  # past the 16 positions of the YaRN variants' original context


def tokens(vocab_size: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(7))


def our_logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(model(ids, Sequences((LENGTH,)).positions(), Sequences((LENGTH,))).hidden_TD)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    held: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        held |= load_file(file)
    return {name: tensor for name, tensor in held.items() if tensor.numel()}


def replace_weights_by_gradients(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = oracle(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_hf(tmp_path / "theirs")
    ids = tokens(theirs.config.vocab_size)

    expected = theirs(ids[None]).logits[0]
    logits = our_logits(ours, ids)
    assert expected.abs().max() > 0.5  # otherwise 1e-5 would mean nothing
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    cross_entropy(expected[:-1], ids[1:]).backward()
    cross_entropy(logits[:-1], ids[1:]).backward()
    replace_weights_by_gradients(theirs)
    replace_weights_by_gradients(ours)
    theirs.save_pretrained(tmp_path / "their-gradients")
    save_hf(ours, tmp_path / "our-gradients")
    their_gradients, our_gradients = tensors(tmp_path / "their-gradients"), tensors(tmp_path / "our-gradients")
    assert their_gradients.keys() == our_gradients.keys()
    for key, gradient in their_gradients.items():
        if key.endswith("e_score_correction_bias"):
            continue  # moved by the balancing rule, it has no gradient
        error = (our_gradients[key] - gradient).abs().max()
        assert error <= 1e-4 * gradient.abs().max(), f"{key}: {error} of {gradient.abs().max()}"


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_convert_both_ways(name: str, tmp_path: Path) -> None:
    theirs = oracle(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_hf(tmp_path / "theirs")
    save_hf(ours, tmp_path / "ours", shard_bytes=20_000)
    save_hf(load_hf(tmp_path / "ours"), tmp_path / "again", shard_bytes=20_000)

    files = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert len(files) > 3
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for file in files:
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file

    reloaded, report = type(theirs).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not report["unexpected_keys"]
    # transformers knows no "no shared experts": it wants tensors without elements
    assert all("shared_experts" in key for key in report["missing_keys"])
    ids = tokens(theirs.config.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids[None]).logits, theirs(ids[None]).logits, atol=1e-6, rtol=0)
