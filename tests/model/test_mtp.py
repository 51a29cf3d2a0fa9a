"""Multi-token prediction against its equation, and its checkpoint layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tapwater.checkpoint.hf import load_hf, save_hf
from tapwater.config import replace_fields
from tapwater.errors import CheckpointError
from tapwater.model import Sequences, Transformer, positions_of
from tapwater.model.rope import rotation
from tiny import CONFIGS, prompt

CONFIG = replace_fields(CONFIGS["v3"], {"num_nextn_predict_layers": 2}, "mtp")


def test_each_depth_follows_the_equation() -> None:
    model = Transformer.random(CONFIG, seed=1)
    lengths, ids = (8, 5), torch.tensor(prompt(13, 3))
    positions, sequences = positions_of(lengths), Sequences(lengths)
    hidden = model(ids, positions, sequences).hidden_TD
    outputs = model.predict_ahead(hidden, ids, positions, sequences)
    previous = hidden
    for depth, (module, output) in enumerate(zip(model.mtp, outputs, strict=True), start=1):
        ahead = torch.cat([part.roll(-depth) for part in ids.split(lengths)])
        joined = torch.cat((module.enorm(model.embed_tokens(ahead)), module.hnorm(previous)), -1)
        rows, _ = module.block(module.eh_proj(joined), rotation(CONFIG, positions), sequences, 3, None)
        valid = torch.cat([torch.arange(length) < length - depth for length in lengths])
        torch.testing.assert_close(output.hidden_TD[valid], module.norm(rows)[valid], atol=1e-5, rtol=0)
        # the same rows feed the next depth, invalid ones included
        replaced = torch.cat([part[torch.arange(len(part)).add(depth).clamp(max=len(part) - 1)]
                              for part in ids.split(lengths)])  # fmt: skip
        joined = torch.cat((module.enorm(model.embed_tokens(replaced)), module.hnorm(previous)), -1)
        previous, _ = module.block(module.eh_proj(joined), rotation(CONFIG, positions), sequences, 3, None)
    model.logits(outputs[1].hidden_TD).sum().backward()
    assert model.mtp[0].eh_proj.weight.grad.abs().sum() > 0


def test_checkpoint_layout_is_the_published_one(tmp_path: Path) -> None:
    model = Transformer.random(CONFIG, seed=1)
    save_hf(model, tmp_path / "one")
    names = load_file(tmp_path / "one" / "model.safetensors").keys()
    for name in ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "shared_head.head.weight",
                 "embed_tokens.weight", "self_attn.q_a_proj.weight", "mlp.experts.7.down_proj.weight"):  # fmt: skip
        assert f"model.layers.3.{name}" in names
        assert f"model.layers.4.{name}" in names
    save_hf(load_hf(tmp_path / "one"), tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_a_copy_that_differs_from_the_shared_tensor_is_refused(tmp_path: Path) -> None:
    save_hf(Transformer.random(CONFIG, seed=1), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.3.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.embed_tokens"):
        load_hf(tmp_path / "model")
